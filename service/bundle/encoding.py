"""Many records at once: from rows of a table, or records of a file, to the arrays that the graph reads.

Says of every row what `FeatureSchema.encode` says of its record: the same numbers, gaps, warnings and refusals. Columns are read
as columns where a feature allows it, since a Python object for every cell costs more than the graph.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

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
from service.bundle.tables import find_column, parse_numbers, table_records

Warned = dict[int, str]  # row -> what is remarkable about one feature there


class Sent(NamedTuple):
    """What is remarkable about one good record."""

    missing: tuple[str, ...]
    warnings: tuple[str, ...]


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


def encode_frame(frame: pl.DataFrame, schema: FeatureSchema, *, num_threads: int = 1) -> EncodedBatch:
    """The rows of a table; a feature without a column is missing. Raises `TableError` for a column that cannot be read.

    `num_threads` texts are embedded at a time.
    """
    schema = embed_ahead(schema, _texts(frame, schema), num_threads=num_threads)
    given: Sequence[object] = frame.get_column("id").to_list() if "id" in frame.columns else [None] * frame.height
    columns = [_Columns.read(frame, modality) for modality in schema.modalities]
    bad = _bad_rows(columns, schema)
    refusals = _refusals(frame, bad.nonzero()[0].tolist(), schema)
    good = np.array([row for row in range(frame.height) if row not in refusals], np.intp)
    arrays = {c.modality.name: c.values[good] if refusals else c.values for c in columns}
    remarks = [part.remarks() for part in columns]
    sent = [_joined(remarks, row) for row in good.tolist()]
    return EncodedBatch([id_text(value) for value in given], arrays, sent, refusals)


def _texts(frame: pl.DataFrame, schema: FeatureSchema) -> Texts:
    named = (((name, feature.name), find_column(frame, name, feature)) for name, feature in schema.embedded)
    return {place: frame.get_column(column).to_list() for place, column in named if column is not None}


def _joined(remarks: Sequence["_Remarks"], row: int) -> Sent:
    missing = tuple(name for part in remarks for name in part.missing[row])
    return Sent(missing, tuple(warning for part in remarks for warning in part.warnings.get(row, ())))


def _refusals(frame: pl.DataFrame, rows: list[int], schema: FeatureSchema) -> dict[int, InvalidRecordError]:
    """Why rows are refused: as single records, so that every complaint is worded in one place."""
    refusals: dict[int, InvalidRecordError] = {}
    if not rows:
        return refusals
    for row, record in zip(rows, table_records(frame[rows], schema), strict=True):
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
    """What is missing in each row of one modality, and the warnings of rows that have some."""

    missing: list[tuple[str, ...]]
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
    def read(cls, frame: pl.DataFrame, modality: Modality) -> "_Columns":
        values = np.full((frame.height, modality.width), np.nan, np.float32)
        unfit = np.zeros(frame.height, np.bool_)
        warned = []
        for feature, columns in modality.by_name.values():
            if (name := find_column(frame, modality.name, feature)) is None:
                continue
            read = _read_feature(frame.get_column(name), feature)
            values[:, columns] = read.values
            unfit |= read.unfit
            if read.warned:
                warned.append((feature.name, read.warned))
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
        missing: list[tuple[str, ...]] = [()] * len(self.gaps)
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


class _Read(NamedTuple):
    """A column of a table as columns of the graph's input."""

    values: NDArray[Any]  # (rows, width), NaN where missing or unfit
    unfit: NDArray[np.bool_]  # (rows,)
    warned: Warned


def _read_feature(series: pl.Series, feature: Feature) -> _Read:
    match feature:
        case NumericFeature():
            return _read_numeric(series, feature)
        case CategoricalFeature():
            return _read_cells(series, feature, _once(feature.encode))
        case ArrayFeature() if (numbers := _as_matrix(series, feature.width)) is not None:
            unfit = np.isinf(numbers) if numbers.dtype == np.float32 else np.abs(numbers) > FLOAT32_MAX
            return _Read(np.where(unfit, np.nan, numbers) if unfit.any() else numbers, unfit.any(axis=1), {})
        case _:
            return _read_cells(series, feature, feature.encode)


def _read_numeric(series: pl.Series, feature: NumericFeature) -> _Read:
    parsed, bad = parse_numbers(series)
    numbers = parsed.to_numpy().astype(np.float64)
    unfit = bad.to_numpy() | (np.abs(numbers) > FLOAT32_MAX)
    numbers = np.where(unfit, np.nan, numbers)
    outside = ((numbers < feature.minimum) | (numbers > feature.maximum)).nonzero()[0].tolist()
    warned = {row: warning for row in outside if (warning := feature.check_cells((float(numbers[row]),))) is not None}
    return _Read(numbers[:, None], unfit, warned)


def _read_cells(series: pl.Series, feature: Feature, encode: Callable[[Any], Any]) -> _Read:
    """Cell by cell."""
    values = np.full((len(series), feature.width), np.nan, np.float32)
    unfit = np.zeros(len(series), np.bool_)
    warned: Warned = {}
    for row, cell in enumerate(series.to_list()):
        if is_missing(cell):
            continue
        try:
            values[row], warning = encode(cell)
        except UnfitValueError:
            unfit[row] = True
            continue
        if warning is not None:
            warned[row] = warning
    return _Read(values, unfit, warned)


def _once(encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same, asked once for every different cell; True and 1 are equal, and their spellings are not."""
    known: dict[tuple[type, Any], Any] = {}

    def remembered(cell: Any) -> Any:
        key = (type(cell), cell)
        try:
            if key not in known:
                known[key] = encode(cell)
        except TypeError:  # a list or an object
            return encode(cell)
        return known[key]

    return remembered


def _as_matrix(series: pl.Series, width: int) -> NDArray[Any] | None:
    """Cells that all hold `width` numbers in a row, as one matrix; None where they do not."""
    if isinstance(series.dtype, pl.Array):
        series = series.reshape((len(series), -1)).arr.to_list()
    if not isinstance(series.dtype, pl.List) or not series.dtype.inner.is_numeric() or series.null_count():
        return None
    if not len(series) or (series.list.len() != width).any():
        return None
    cells = series.explode()
    return cells.cast(pl.Float32 if cells.dtype == pl.Float32 else pl.Float64).to_numpy().reshape(-1, width)
