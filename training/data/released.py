"""What the readers of the paper's data sets answer, and what they share: files, ids, splits and missing values.

A reader takes the files in the layout the released loaders expect and answers one row per subject with its label and its
split, and one row-aligned array per modality. It fits nothing: no scaling, no filling, no statistic of any kind, because
those belong to the training rows. A missing value is NaN, a missing modality a row of NaN.
"""

import importlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundle.tables import TableError
from training.data.rows import AlignedRows, FiniteRows, LazyRows, RowArray, finite, parts, to_float32
from training.data.split import SPLITS
from training.data.tables import read_table
from training.errors import DataError

ID, SPLIT = "id", "split"
_SPLIT_KEYS = dict(zip(("training", "validation", "testing"), SPLITS, strict=True))
_WHOLE_NUMBER = re.compile(r"(-?\d+)\.0*")


@dataclass(frozen=True, slots=True)
class ReleasedData:
    """A data set as released. Row i of `frame` and of every array is the same subject."""

    frame: pl.DataFrame  # "id" (text), the label columns, "split" (train, validation or test)
    arrays: Mapping[str, RowArray]  # modality -> (N, ...), in the order of the released loader; NaN where missing
    notes: tuple[str, ...]  # what was dropped or read as missing, and why

    def __post_init__(self) -> None:
        assert all(len(array) == self.frame.height for array in self.arrays.values())


def find_file(root: Path, name: str) -> Path:
    """The file `name` in `root`. Raises `DataError`."""
    path = root / name
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {name} of the released layout in {root}")
    return path


def library(name: str) -> Any:
    """A library that only these readers need. Raises `DataError` saying how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(f"reading this data set needs {name}: pip install 'i2moe-service[datasets]'") from error


def read_rows(path: Path, columns: Sequence[str] = ()) -> pl.DataFrame:
    """A csv table as text, with at least one row and these columns. Raises `DataError`."""
    try:
        frame = read_table(path)
    except TableError as error:
        raise DataError(str(error)) from error
    if absent := [column for column in columns if column not in frame.columns]:
        raise DataError(f"{path}: expected columns {', '.join(columns)}, found no {', '.join(absent)}")
    if frame.height == 0:
        raise DataError(f"{path}: expected at least one row, found none")
    return frame


def text_id(value: object) -> str:
    """An id as text, so that 10000032, "10000032" and 10000032.0 are the same subject in every file."""
    text = str(value).strip()
    whole = _WHOLE_NUMBER.fullmatch(text)
    return whole.group(1) if whole else text


def unique_ids(values: Sequence[object], path: Path) -> list[str]:
    """Ids as text. Raises `DataError` for an empty id and for one that names two rows."""
    ids = [text_id(value) for value in values]
    if num_empty := sum(not one for one in ids):
        raise DataError(f"{path}: expected an id in every row, found {num_empty} of {len(ids)} rows without one")
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{path}: expected every id once, found {len(twice)} of them more often (first: {twice[0]})")
    return ids


def read_splits(path: Path) -> dict[str, str]:
    """Subject to split, from {"training": [...], "validation": [...], "testing": [...]}. Raises `DataError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    wanted = ", ".join(_SPLIT_KEYS)
    if not isinstance(document, dict) or any(not isinstance(document.get(key), list) for key in _SPLIT_KEYS):
        found = ", ".join(document) if isinstance(document, dict) else type(document).__name__
        raise DataError(f"{path}: expected lists of ids under {wanted}, found {found}")
    split_of: dict[str, str] = {}
    for key, split in _SPLIT_KEYS.items():
        for one in map(text_id, document[key]):
            if split_of.setdefault(one, split) != split:
                raise DataError(f"{path}: expected each id in one split, found {one} in {split_of[one]} and {split}")
    return split_of


def assign_splits(frame: pl.DataFrame, split_of: Mapping[str, str], path: Path) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Add the split of each row and leave out rows without one; answers the notes too. Raises `DataError`.

    An id that does not match is never silently lost: it is counted in a note, and files without a common id are refused.
    """
    splits = [split_of.get(one) for one in frame[ID]]
    kept = frame.with_columns(pl.Series(SPLIT, splits, pl.String)).filter(pl.col(SPLIT).is_not_null())
    if kept.height == 0:
        example = next(iter(split_of), "nothing")
        raise DataError(f"{path}: no id is that of a labelled row; expected ids like {frame[ID][0]}, found {example}")
    if absent := [split for split in SPLITS if split not in set(kept[SPLIT])]:
        raise DataError(f"{path}: expected labelled rows in every split, found none in {', '.join(absent)}")
    notes = []
    if num_left := frame.height - kept.height:
        notes.append(f"{num_left} of {frame.height} labelled rows dropped: {path.name} puts them in no split")
    if num_unknown := len(split_of) - kept.height:
        notes.append(f"{num_unknown} of {len(split_of)} ids of {path.name} ignored: they have no label")
    return kept, tuple(notes)


def align(values: RowArray, ids: Sequence[str], wanted: Sequence[str]) -> RowArray:
    """The rows of `values` (one per id) in the order of `wanted`, NaN for an id that has none."""
    row_of = {one: row for row, one in enumerate(ids)}
    if isinstance(values, LazyRows):
        return AlignedRows(values, np.array([row_of.get(one, -1) for one in wanted], np.intp))
    places = np.array([place for place, one in enumerate(wanted) if one in row_of], np.intp)
    aligned = np.full((len(wanted), *values.shape[1:]), np.nan, np.float32)
    aligned[places] = values[[row_of[wanted[place]] for place in places]]
    return aligned


def without_infinities(arrays: Mapping[str, RowArray]) -> tuple[dict[str, RowArray], tuple[str, ...]]:
    """The arrays as float32, infinity read as missing; answers the notes too."""
    cleaned: dict[str, RowArray] = {}
    notes = []
    for name, array in arrays.items():
        if num_infinite := sum(int(np.isinf(to_float32(part)).sum()) for part in parts(array)):
            notes.append(f"{name}: {num_infinite} of {math.prod(array.shape)} values read as missing: they are infinite")
        cleaned[name] = FiniteRows(array) if isinstance(array, LazyRows) else finite(array)
    return cleaned, tuple(notes)


def check_numbers(array: NDArray[Any], what: str, *, shape: Sequence[int | None]) -> None:
    """Raises `DataError` unless `array` holds numbers of this shape; None stands for any size above 0."""
    fits = array.ndim == len(shape) and all(
        have == want or (want is None and have) for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"{what}: expected numbers of shape ({wanted}), found {array.dtype} {array.shape}")
