"""Many records at once: from rows of a table, or records of a file, to the arrays that the graph reads.

Says of every row what `FeatureSchema.encode` says of its record: the same numbers, gaps, warnings and refusals. Columns are read
as columns where a feature allows it, since a Python object for every cell costs more than the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

from service.bundle.answers import Sent
from service.bundle.embedding import Texts, embed_ahead, texts_of_records
from service.bundle.errors import InvalidRecordError
from service.bundle.features import (
    FLOAT32_MAX,
    ArrayFeature,
    CategoricalFeature,
    Feature,
    FloatArray,
    NumericFeature,
    UnfitValueError,
    is_missing,
)
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.tables import ID_COLUMN, Table, find_column, parse_numbers, python_values, read_column, table_records

Warned = dict[int, str]  # row -> what is remarkable about one feature there
_UNREMARKABLE = Sent((), ())


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Some rows of a file: arrays and remarks of the good ones, in order, and why the others are refused."""

    ids: list[str | None]  # of every row
    arrays: dict[str, FloatArray]
    sent: list[Sent]
    refusals: dict[int, InvalidRecordError]  # by row

    def __len__(self) -> int:
        return len(self.ids)


def id_text(value: object) -> str | None:
    """A record's id as answers in files carry it."""
    return None if value is None else str(value).encode("utf-8", "replace").decode()  # JSON may hold half characters


def encode_records(records: Sequence[Mapping[str, Any]], schema: FeatureSchema, *, num_threads: int = 1) -> EncodedBatch:
    """Records one by one; `num_threads` texts are embedded at a time."""
    schema = embed_ahead(schema, texts_of_records(schema, records), num_threads=num_threads)
    refusals: dict[int, InvalidRecordError] = {}
    good = []
    for row, record in enumerate(records):
        try:
            good.append(schema.encode(record))
        except InvalidRecordError as error:
            refusals[row] = error
    arrays = schema.stack([record.arrays for record in good])
    sent = [Sent(record.missing, record.warnings) for record in good]
    return EncodedBatch([id_text(record.get("id")) for record in records], arrays, sent, refusals)


def encode_table(table: Table, schema: FeatureSchema, *, num_threads: int = 1) -> EncodedBatch:
    """The rows of a table; a feature without a column is missing. Raises `TableError` for a column that cannot be read.

    `num_threads` texts are embedded at a time.
    """
    schema = embed_ahead(schema, _texts(table, schema), num_threads=num_threads)
    has_ids = table.schema.get_field_index(ID_COLUMN) >= 0
    given: Sequence[object] = python_values(read_column(table, ID_COLUMN), ID_COLUMN) if has_ids else [None] * table.num_rows
    columns = [_Columns.read(table, modality) for modality in schema.modalities]
    bad = _bad_rows(columns, schema)
    refusals = _refusals(table, bad.nonzero()[0].tolist(), schema)
    good = np.array([row for row in range(table.num_rows) if row not in refusals], np.intp)
    arrays = {c.modality.name: c.values[good] if refusals else c.values for c in columns}
    remarks = [part.remarks() for part in columns]
    remarkable = {row for part in remarks for row in (*part.missing, *part.warnings)}
    sent = [_joined(remarks, row) if row in remarkable else _UNREMARKABLE for row in good.tolist()]
    return EncodedBatch([id_text(value) for value in given], arrays, sent, refusals)


def _texts(table: Table, schema: FeatureSchema) -> Texts:
    named = (((name, feature.name), find_column(table, name, feature)) for name, feature in schema.embedded)
    return {place: python_values(read_column(table, column), column) for place, column in named if column is not None}


def _joined(remarks: Sequence["_Remarks"], row: int) -> Sent:
    missing = tuple(name for part in remarks for name in part.missing.get(row, ()))
    return Sent(missing, tuple(warning for part in remarks for warning in part.warnings.get(row, ())))


def _refusals(table: Table, rows: list[int], schema: FeatureSchema) -> dict[int, InvalidRecordError]:
    """Why rows are refused: as single records, so that every complaint is worded in one place."""
    refusals: dict[int, InvalidRecordError] = {}
    if not rows:
        return refusals
    for row, record in zip(rows, table_records(table, schema, rows=rows), strict=True):
        try:
            schema.encode(record)
        except InvalidRecordError as error:
            refusals[row] = error
    return refusals


def _bad_rows(columns: Sequence["_Columns"], schema: FeatureSchema) -> NDArray[np.bool_]:
    gone = [part.gone for part in columns]
    lacking = np.logical_or.reduce(gone) if schema.missing == "reject" else np.logical_and.reduce(gone)
    return np.asarray(np.logical_or.reduce([part.unfit for part in columns]) | lacking)


class _Remarks(NamedTuple):
    """What is missing in one modality, and its warnings, of the rows that have some."""

    missing: dict[int, tuple[str, ...]]
    warnings: dict[int, list[str]]


@dataclass(frozen=True, slots=True)
class _Columns:
    """One modality of a table."""

    modality: Modality
    values: FloatArray  # (rows, columns), NaN where missing or unfit
    gaps: NDArray[np.bool_]  # (rows, columns), where they are NaN
    unfit: NDArray[np.bool_]  # (rows,), where a cell is refused
    warned: list[tuple[str, Warned]]  # by feature, in order

    @classmethod
    def read(cls, table: Table, modality: Modality) -> "_Columns":
        parts = []
        unfit = np.zeros(table.num_rows, np.bool_)
        warned = []
        for feature, columns in modality.by_name.values():
            if (name := find_column(table, modality.name, feature)) is None:
                continue
            read = _read_feature(read_column(table, name), name, feature)
            parts.append((columns, read.values))
            unfit |= read.unfit
            if read.warned:
                warned.append((feature.name, read.warned))
        values = _side_by_side(parts, (table.num_rows, modality.width))
        return cls(modality, values, np.isnan(values), unfit, warned)

    @property
    def gone(self) -> NDArray[np.bool_]:
        """In which rows (rows,) the modality has no value at all."""
        return np.asarray(self.gaps.all(axis=1))

    def remarks(self) -> _Remarks:
        """Rows that lack the same cells share one answer."""
        warnings: dict[int, list[str]] = {}
        for feature, warned in self.warned:
            for row, warning in warned.items():
                warnings.setdefault(row, []).append(f"{self.modality.name}.{feature} {warning}")
        known: dict[bytes, tuple[str, ...]] = {}
        missing: dict[int, tuple[str, ...]] = {}
        for row in np.flatnonzero(self.gaps.any(axis=1)).tolist():
            pattern = self.gaps[row].tobytes()
            if pattern not in known:
                known[pattern] = self._missing(self.gaps[row])
            missing[row] = known[pattern]
        return _Remarks(missing, warnings)

    def _missing(self, gaps: NDArray[np.bool_]) -> tuple[str, ...]:
        name, owners = self.modality.name, self.modality.column_owners
        if gaps.all():
            return (name,)
        return tuple(f"{name}.{owner}" for owner in dict.fromkeys(owners[gap] for gap in gaps.nonzero()[0].tolist()))


def _side_by_side(parts: Sequence[tuple[slice, NDArray[Any]]], shape: tuple[int, int]) -> FloatArray:
    """Columns of features as one float32 array, NaN where there are none; not copied where there is but one feature."""
    if len(parts) == 1 and parts[0][1].shape == shape:
        return np.asarray(parts[0][1], np.float32)
    values = np.full(shape, np.nan, np.float32)
    for columns, part in parts:
        values[:, columns] = part
    return values


class _Read(NamedTuple):
    """A column of a table as columns of the graph's input."""

    values: NDArray[Any]  # (rows, width), NaN where missing or unfit
    unfit: NDArray[np.bool_]  # (rows,)
    warned: Warned


def _read_feature(array: pa.Array, name: str, feature: Feature) -> _Read:
    match feature:
        case NumericFeature():
            return _read_numeric(array, name, feature)
        case CategoricalFeature() if not types.is_nested(array.type):
            return _read_categories(array, name, feature)
        case ArrayFeature() if (numbers := _as_matrix(array, feature)) is not None:
            unfit = np.isinf(numbers) if numbers.dtype == np.float32 else np.abs(numbers) > FLOAT32_MAX
            return _Read(np.where(unfit, np.nan, numbers) if unfit.any() else numbers, unfit.any(axis=1), {})
        case _:
            return _read_cells(python_values(array, name), feature)


def _read_numeric(array: pa.Array, name: str, feature: NumericFeature) -> _Read:
    numbers, bad = parse_numbers(array, name)
    unfit = bad | (np.abs(numbers) > FLOAT32_MAX)
    numbers = np.where(unfit, np.nan, numbers)
    outside = ((numbers < feature.minimum) | (numbers > feature.maximum)).nonzero()[0].tolist()
    warned = {row: warning for row in outside if (warning := feature.check_cells((float(numbers[row]),))) is not None}
    return _Read(numbers[:, None], unfit, warned)


def _read_categories(array: pa.Array, name: str, feature: CategoricalFeature) -> _Read:
    """Every distinct cell once."""
    encoded = array.dictionary_encode(null_encoding="encode")
    distinct = _read_cells(python_values(encoded.dictionary, name), feature)
    rows = encoded.indices.to_numpy()
    warned = {row: warning for cell, warning in distinct.warned.items() for row in (rows == cell).nonzero()[0].tolist()}
    return _Read(distinct.values[rows], distinct.unfit[rows], warned)


def _read_cells(cells: Sequence[Any], feature: Feature) -> _Read:
    """Cell by cell."""
    values = np.full((len(cells), feature.width), np.nan, np.float32)
    unfit = np.zeros(len(cells), np.bool_)
    warned: Warned = {}
    for row, cell in enumerate(cells):
        if is_missing(cell):
            continue
        try:
            values[row], warning = feature.encode(cell)
        except UnfitValueError:
            unfit[row] = True
            continue
        if warning is not None:
            warned[row] = warning
    return _Read(values, unfit, warned)


def _as_matrix(array: pa.Array, feature: ArrayFeature) -> NDArray[Any] | None:
    """Cells that all hold numbers of the feature's shape, as a matrix (rows, width), copied only where needed; else None."""
    shape: tuple[int, ...] = ()
    while types.is_fixed_size_list(array.type) and not array.null_count:
        shape += (array.type.list_size,)
        array = array.flatten()
    if shape not in {(), feature.shape, (feature.width,)}:
        return None
    if types.is_list(array.type) or types.is_large_list(array.type):
        if shape or array.null_count or (np.diff(array.offsets) != feature.width).any():
            return None
        shape, array = (feature.width,), array.flatten()
    if not shape or not (types.is_floating(array.type) or types.is_integer(array.type)):
        return None
    numbers = array.to_numpy(zero_copy_only=False).reshape(-1, feature.width)
    return np.asarray(numbers if numbers.dtype == np.float32 else numbers.astype(np.float64))
