"""MIMIC-IV as the released loader reads it: one row per patient, already turned into vectors by nobody's published code.

Layout of the folder (the paper's files; neither its authors nor those of Flex-MoE and AMC published how they were made):
    labels.csv                      subject_id, one_year_mortality (0 or 1)
    PTID_splits_mimic.json          {"training": [subject_id], "validation": [...], "testing": [...]}
    lab_x.pt, note_x.pt, code_x.pt  2-D arrays by torch.save; row i is row i of labels.csv, since they hold no ids

Differences from the released loader: the .pt files are read without running them, ids match whether they are written as
numbers or as text, and NaN stays NaN (released: 0).
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.pickles import read_torch_array
from training.data.released import (
    ID,
    ReleasedData,
    assign_splits,
    check_numbers,
    find_file,
    read_rows,
    read_splits,
    unique_ids,
    without_infinities,
)
from training.errors import DataError

LABEL = "one_year_mortality"
CLASSES = ("alive", "dead")  # values 0, 1
MODALITIES = ("lab", "note", "code")  # the released loader's order


def read(root: Path) -> ReleasedData:
    """Read the folder. Raises `DataError`."""
    labelled = _labels(root)
    splits = find_file(root, "PTID_splits_mimic.json")
    frame, notes = assign_splits(labelled.with_row_index("row"), read_splits(splits), splits)
    rows = frame["row"].to_numpy()
    arrays: dict[str, NDArray[Any]] = {}
    for name in MODALITIES:
        array, short = _vectors(find_file(root, f"{name}_x.pt"), labelled.height)
        arrays[name], notes = array[rows], (*notes, *short)
    cleaned, infinite = without_infinities(arrays)
    return ReleasedData(frame.drop("row"), cleaned, (*notes, *infinite))


def _labels(root: Path) -> pl.DataFrame:
    path = find_file(root, "labels.csv")
    table = read_rows(path, ["subject_id", LABEL])
    values = table[LABEL].str.strip_chars().cast(pl.Float64, strict=False)
    if num_bad := int((~values.is_in([0.0, 1.0])).fill_null(value=True).sum()):
        raise DataError(f"{path}: expected {LABEL} 0 or 1 in every row, found {num_bad} of {table.height} rows with another")
    ids = unique_ids(table["subject_id"].fill_null("").to_list(), path)
    return pl.DataFrame({ID: ids, LABEL: values.cast(pl.Int8)})


def _vectors(path: Path, num_rows: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """One vector per row of labels.csv. A file may hold fewer rows: by its layout those at the end then have no vector."""
    array = read_torch_array(path)
    check_numbers(array, str(path), shape=(None, None))
    if (num_lacking := num_rows - len(array)) < 0:
        raise DataError(f"{path}: expected at most the {num_rows} rows of labels.csv, found {len(array)}")
    if num_lacking == 0:
        return array, ()
    padded = np.full((num_rows, array.shape[1]), np.nan, np.float32)
    padded[: len(array)] = array
    return padded, (f"{path.name}: holds {len(array)} rows; the last {num_lacking} of labels.csv lack the modality",)
