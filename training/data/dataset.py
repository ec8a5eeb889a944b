"""A recipe's data, ready to train on: splits, fitted schema, encoded rows, target."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema, is_missing
from service.bundle.tables import records_from_columns
from training.data.config import DataConfig
from training.data.encode import encode_columns, rows_of_columns
from training.data.fit import fit_schema, read_columns, spelling_notes
from training.data.labels import read_target
from training.data.rows import Column, Columns, LazyRows, RowArray, absent_rows, take
from training.data.source import load_source
from training.data.split import Rows, split_rows
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded rows, in memory or in their files. Row i of every array and of `target` is the same patient."""

    schema: FeatureSchema
    task: TaskInfo
    arrays: Mapping[str, RowArray]  # modality -> float32 (N, columns), NaN where missing
    target: NDArray[Any]  # class positions (N,), 0/1 labels (N, C) or numbers (N,)
    splits: Mapping[str, Rows]
    notes: tuple[str, ...]  # what was dropped and why, and what is odd about the table
    classes: tuple[str, ...] = ()  # the label's values as the table spells them, in the order of task.labels
    columns: Columns = field(default_factory=dict)  # what was encoded

    def record(self, row: int) -> dict[str, Any]:
        """One row as it was before encoding: what a client would send."""
        (record,) = records_from_columns(rows_of_columns(self.columns, np.array([row])), 1)
        return record

    def part(self, split: str) -> tuple[dict[str, RowArray], NDArray[Any]]:
        """The arrays and target of one split."""
        rows = self.splits[split]
        return {name: take(array, rows) for name, array in self.arrays.items()}, self.target[rows]


def load_dataset(config: DataConfig, folder: Path, *, seed: int, missing: Literal["learned", "reject"] = "learned") -> Dataset:
    """Read, split, fit on the training rows, encode. `folder` is where the recipe lies. Raises `DataError`."""
    source = load_source(config, folder)
    columns = read_columns(source, config, folder)
    usable, notes = _usable_rows(columns, source.frame.height, missing)
    frame = source.frame.filter(pl.Series(usable))
    columns = {m: {name: _kept(column, usable) for name, column in features.items()} for m, features in columns.items()}
    target = read_target(frame, config)
    splits = split_rows(frame, target.strata, config.split, group=config.group, seed=seed)
    _check_labels_vary(target.values, splits)
    task = target.task_info(config, splits["train"])
    schema = fit_schema(columns, source.modalities, splits["train"], missing, folder=folder)
    arrays = encode_columns(schema, columns, frame.height)
    notes = (*source.notes, *notes, *spelling_notes(schema))
    return Dataset(schema, task, arrays, target.values, splits, notes, target.classes, columns)


def _check_labels_vary(target: NDArray[Any], splits: Mapping[str, Rows]) -> None:
    """Of several labels at least one must be there in some rows of every split and not in others: else no metric is defined."""
    for name, rows in splits.items():
        if target.ndim > 1 and not (np.ptp(target[rows], axis=0) > 0).any():
            raise DataError(f"split: in {name} ({len(rows)} rows) no label is there in some rows and not in others")


def _kept(column: Column, usable: NDArray[np.bool_]) -> Column:
    """The usable rows of a column."""
    if isinstance(column, np.ndarray | LazyRows):
        return column if usable.all() else take(column, np.flatnonzero(usable))
    return [value for value, keep in zip(column, usable, strict=True) if keep]


def _usable_rows(columns: Columns, num_rows: int, missing: str) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Rows with a value in any modality ("learned") or in every modality ("reject"), and what to say of the others."""
    absent = [np.logical_and.reduce([_absent(column) for column in features.values()]) for features in columns.values()]
    required = len(columns) if missing == "reject" else 1
    usable = len(columns) - np.sum(absent, axis=0) >= required
    num_dropped = int((~usable).sum())
    if num_dropped == num_rows:
        raise DataError(f"no row of {num_rows} has a value in {'every' if missing == 'reject' else 'any'} modality")
    reason = "without a value in one of the modalities (missing = reject)" if missing == "reject" else "without any value"
    note = f"{num_dropped} of {num_rows} rows dropped: {reason}"
    return usable, (note,) if num_dropped else ()


def _absent(column: Column) -> NDArray[np.bool_]:
    """Which rows of a column (N,) hold nothing."""
    return absent_rows(column) if isinstance(column, np.ndarray | LazyRows) else np.array([is_missing(value) for value in column])
