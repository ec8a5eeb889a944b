"""CMU-MOSI, MultiBench's processed file: 2,199 spoken opinions with vision, audio and text, 50 steps each, and a sentiment.

Layout of the folder: mosi_data.pkl with {"train" | "valid" | "test": {"vision" (N, 50, 20), "audio" (N, 50, 5),
"text" (N, 50, 300), "labels" (N, 1, 1) in [-3, 3], "id" (N,) or (N, parts)}}.

The frame has two labels: "sentiment", the score, for regression, and "positive", whether it is above 0, for a binary task.
Differences from the released loader: the pickle is read without running it, and NaN and infinity are missing values (released:
0, and the largest float for infinity), and sequences begin with their first spoken word: the file pads in front, up to the
first step whose text is not zeros (as its authors' own reader has it), and that padding is moved behind, where it ends a
sequence instead of delaying it. Padding stays zeros, since nothing in the file tells it from values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.pickles import read_pickle
from training.data.released import ID, SPLIT, ReleasedData, check_numbers, find_file, unique_ids, without_infinities
from training.data.rows import RowArray
from training.data.split import SPLITS
from training.errors import DataError

FILE = "mosi_data.pkl"
SCORE, POSITIVE = "sentiment", "positive"
CLASSES = ("negative", "positive")  # POSITIVE 0, 1; a score of 0 counts as negative, as released
MODALITIES = ("vision", "audio", "text")  # the released loader's order, whatever order its command line says
SHAPES = {"vision": (50, 20), "audio": (50, 5), "text": (50, 300)}

_SPLIT_KEYS = dict(zip(("train", "valid", "test"), SPLITS, strict=True))
_LOWEST, _HIGHEST = -3, 3


def read(root: Path) -> ReleasedData:
    """Read the file. Raises `DataError`."""
    path = find_file(root, FILE)
    document = read_pickle(path)
    if not isinstance(document, dict) or not all(isinstance(document.get(key), dict) for key in _SPLIT_KEYS):
        found = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise DataError(f"{path}: expected dicts under {', '.join(_SPLIT_KEYS)}, found {found}")
    parts = [_part(document[key], f"{path}: {key}") for key in _SPLIT_KEYS]
    _check_alike(parts, path)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in (*MODALITIES, "labels", "id")}
    splits = [split for part, split in zip(parts, SPLITS, strict=True) for _ in part["id"]]
    kept = np.flatnonzero((joined["text"] != 0).any(axis=(1, 2)))
    frame = _frame({name: joined[name][kept] for name in ("labels", "id")}, [splits[row] for row in kept], path)
    arrays, infinite = without_infinities(_from_the_first_word({name: joined[name][kept] for name in MODALITIES}))
    num_dropped = len(splits) - len(kept)
    dropped = (f"{num_dropped} of {len(splits)} rows dropped: their text is all zeros",) if num_dropped else ()
    return ReleasedData(frame, arrays, (*dropped, *_unlike_the_paper(arrays), *infinite))


def _from_the_first_word(sequences: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Sequences (N, T, F) with the steps before the first whose text is not zeros moved behind the others.

    Modalities are aligned step by step; those of another length than the text stay as they are.
    """
    is_word_NT = (sequences["text"] != 0).any(axis=2)
    steps_NT = (is_word_NT.argmax(axis=1)[:, None] + np.arange(is_word_NT.shape[1])) % is_word_NT.shape[1]
    return {
        name: np.take_along_axis(array_NTF, steps_NT[:, :, None], axis=1) if array_NTF.shape[:2] == steps_NT.shape else array_NTF
        for name, array_NTF in sequences.items()
    }


def _unlike_the_paper(arrays: Mapping[str, RowArray]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {arrays[name].shape[1:]} per row where the paper's file has {shape}; results are not comparable"
        for name, shape in SHAPES.items()
        if arrays[name].shape[1:] != shape
    )


def _part(part: dict[str, Any], where: str) -> dict[str, NDArray[Any]]:
    """The arrays of one split, checked; labels (N,), ids (N,) as text."""
    if absent := [name for name in (*MODALITIES, "labels", "id") if not isinstance(part.get(name), np.ndarray | list)]:
        raise DataError(f"{where}: expected arrays {', '.join((*MODALITIES, 'labels', 'id'))}, found no {', '.join(absent)}")
    ids = np.array([_joined(value) for value in part["id"]], object)
    arrays: dict[str, NDArray[Any]] = {}
    for name in MODALITIES:
        arrays[name] = np.asarray(part[name])
        check_numbers(arrays[name], f"{where}.{name}", shape=(len(ids), None, None))
    scores = np.asarray(part["labels"])
    check_numbers(scores, f"{where}.labels", shape=(len(ids), *[1] * (scores.ndim - 1)))
    return {**arrays, "labels": scores.reshape(-1), "id": ids}


def _check_alike(parts: list[dict[str, NDArray[Any]]], path: Path) -> None:
    for name in MODALITIES:
        if len(shapes := {part[name].shape[1:] for part in parts}) > 1:
            raise DataError(f"{path}: expected {name} of one shape per row in every split, found {sorted(shapes)}")


def _joined(value: Any) -> str:
    """An id from one text or from an array of its parts, which may be bytes."""
    parts = np.asarray(value).reshape(-1).tolist()
    return "".join(part.decode() if isinstance(part, bytes) else str(part) for part in parts)


def _frame(columns: dict[str, NDArray[Any]], splits: list[str], path: Path) -> pl.DataFrame:
    scores = columns["labels"].astype(np.float64)
    if num_bad := int((~((scores >= _LOWEST) & (scores <= _HIGHEST))).sum()):
        raise DataError(f"{path}: expected labels from {_LOWEST} to {_HIGHEST}, found {num_bad} of {len(scores)} outside or NaN")
    if absent := [split for split in SPLITS if split not in set(splits)]:
        raise DataError(f"{path}: expected rows with text in every split, found none in {', '.join(absent)}")
    ids = unique_ids(columns["id"].tolist(), path)
    return pl.DataFrame({ID: ids, SCORE: scores, POSITIVE: (scores > 0).astype(np.int8), SPLIT: splits})
