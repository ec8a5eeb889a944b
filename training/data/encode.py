"""Tables to what the model reads: one (N, columns) float32 array per modality, as `FeatureSchema.encode` gives it.

Every row passes the schema once, a part of the table at a time, so that whatever does not fit is told before training. Cells
of an array that stays in its file are then let go and read again when a batch needs them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.errors import InvalidRecordError
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.tables import records_from_columns
from training.data.embedded_text import embed_texts
from training.data.rows import Column, Columns, FloatArray, LazyRows, Positions, RowArray, rows_at_once, whole
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class EncodedRows(LazyRows):
    """A modality (N, columns) whose last feature is an array that is read when asked for."""

    head: FloatArray  # (N, k + 1): the columns before the array's, and its first
    cells: LazyRows  # (N, ...), the array
    without_value: NDArray[np.bool_]  # (N,), rows that are missing altogether

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, columns)."""
        return len(self.head), self.head.shape[1] - 1 + int(np.prod(self.cells.shape[1:]))

    def __getitem__(self, rows: Positions) -> FloatArray:
        cells = _as_encoded(self.cells[rows])
        return cells if self.head.shape[1] == 1 else np.concatenate([self.head[rows, :-1], cells], axis=1)

    def take(self, rows: Positions) -> "EncodedRows":
        """These rows alone, still unread."""
        return EncodedRows(self.head[rows], self.cells.take(rows), self.without_value[rows])

    def absent(self) -> NDArray[np.bool_]:
        """Known since the rows were encoded."""
        return self.without_value


def values_in_memory(array: RowArray) -> FloatArray:
    """An encoded modality's columns (N, K); of an array that stays in its files, last, the first alone."""
    return array.head if isinstance(array, EncodedRows) else whole(array)


def _as_encoded(values: NDArray[Any]) -> FloatArray:
    """(B, ...) to (B, cells), rounded as `ArrayFeature.encode` rounds: by way of float64."""
    numbers = values if values.dtype == np.float32 else values.astype(np.float64).astype(np.float32)
    return numbers.reshape(len(values), -1)


def encode_records(schema: FeatureSchema, records: list[dict[str, Any]], *, first_row: int = 1) -> dict[str, FloatArray]:
    """Encode a table's records. Raises `DataError` naming the first row that does not fit."""
    rows = []
    for number, record in enumerate(records, start=first_row):
        try:
            rows.append(schema.encode(record).arrays)
        except InvalidRecordError as error:
            raise DataError(f"row {number}: {error}") from error
    return schema.stack(rows)


def encode_columns(schema: FeatureSchema, columns: Columns, num_rows: int) -> dict[str, RowArray]:
    """Encode a table's columns. Raises `DataError` naming the first row that does not fit."""
    schema = embed_texts(schema, {(name, f.name): _values(columns[name][f.name]) for name, f in schema.embedded})
    kept = {m.name: np.empty((num_rows, _kept_columns(m, columns[m.name])), np.float32) for m in schema.modalities}
    absent = {m.name: np.zeros(num_rows, np.bool_) for m in schema.modalities}
    size = rows_at_once(sum(modality.width for modality in schema.modalities))
    for start in range(0, num_rows, size):
        rows = np.arange(start, min(start + size, num_rows))
        records = list(records_from_columns(rows_of_columns(columns, rows), len(rows)))
        for name, values in encode_records(schema, records, first_row=start + 1).items():
            kept[name][rows] = values[:, : kept[name].shape[1]]
            absent[name][rows] = np.isnan(values).all(axis=1)
    return {name: _encoded(head, _lazy_feature(columns[name]), absent[name]) for name, head in kept.items()}


def _values(column: Column) -> Sequence[Any]:
    """A column of texts, which is never an array."""
    assert not isinstance(column, np.ndarray | LazyRows)
    return column


def _encoded(head: FloatArray, cells: LazyRows | None, absent: NDArray[np.bool_]) -> RowArray:
    return head if cells is None else EncodedRows(head, cells, absent)


def _lazy_feature(features: Mapping[str, Column]) -> LazyRows | None:
    """The one feature of a modality that stays in its file, if there is one: an array, always the last."""
    *_, last = features.values()
    return last if isinstance(last, LazyRows) else None


def _kept_columns(modality: Modality, features: Mapping[str, Column]) -> int:
    if _lazy_feature(features) is None:
        return modality.width
    *_, (_, columns) = modality.columns()
    return columns.start + 1


def rows_of_columns(columns: Columns, rows: Positions) -> dict[str, dict[str, Any]]:
    """Some consecutive rows of every column."""
    part: dict[str, dict[str, Any]] = {}
    for modality, features in columns.items():
        part[modality] = {
            name: values[rows] if isinstance(values, np.ndarray | LazyRows) else values[rows[0] : rows[-1] + 1]
            for name, values in features.items()
        }
    return part
