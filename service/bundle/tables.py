"""Rows of Arrow tables as records, and what a cell means: for training, for scoring a file, and the same for both.

A text is a number if it is, between spaces, an optional sign, decimal digits with at most one point before, among or after them,
and an optional exponent: "1e3", " +.5 ", "5.". "nan" in any case is missing, as an empty cell is. Everything else is no number:
"inf" and what is too large to be finite, "1_000", "1,5", "0x10".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from service.bundle.errors import one_line
from service.bundle.schema import Feature, FeatureSchema, NumericFeature, is_missing

Table: TypeAlias = pa.Table | pa.RecordBatch
ID_COLUMN = "id"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$|^[+-]?(?i:inf|infinity|nan)$"
# What Python has no value for, such as a time after the year 9999 or in a zone that nobody knows.
_UNREADABLE = (pa.ArrowException, ValueError, OverflowError, KeyError)


class TableError(ValueError):
    """A file of rows cannot be used; the message names the file or column and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def find_column(table: Table, modality: str, feature: Feature) -> str | None:
    """The column that holds a feature: `labs.crea` if there is one, else `crea`, else None."""
    find = table.schema.get_field_index
    return next((name for name in _column_names(modality, feature) if find(name) >= 0), None)


def _column_names(modality: str, feature: Feature) -> tuple[str, str]:
    return f"{modality}.{feature.name}", feature.name


def known_columns(schema: FeatureSchema) -> frozenset[str]:
    """Every name of a column that rows of `schema` are read from, their ids' among them."""
    features = ((modality.name, feature) for modality in schema.modalities for feature in modality.features)
    return frozenset({ID_COLUMN, *(name for place in features for name in _column_names(*place))})


def absent_columns(table: Table, schema: FeatureSchema) -> list[str]:
    """Features of the schema for which the table has no column."""
    return [
        f"{modality.name}.{feature.name}"
        for modality in schema.modalities
        for feature in modality.features
        if find_column(table, modality.name, feature) is None
    ]


def read_column(table: Table, name: str) -> pa.Array:
    """A column as one array of plain values or lists. Raises `TableError` where it is absent or holds objects."""
    position = table.schema.get_field_index(name)
    if position < 0:
        raise TableError(f"column {name}: not in the table, which has {shortened_names(table.schema.names)}")
    column = table.column(position)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    array = _decoded(array) if isinstance(array, pa.DictionaryArray) else array
    if types.is_struct(array.type) or types.is_map(array.type) or types.is_union(array.type):
        raise TableError(f"column {name}: expected plain values or lists, found {array.type}")
    return array


def _decoded(array: pa.DictionaryArray) -> pa.Array:
    values = array.dictionary
    if types.is_string_view(values.type):  # Arrow 26 takes nothing out of an array of views
        array = pa.DictionaryArray.from_arrays(array.indices, values.cast(pa.large_string()))
    return array.dictionary_decode()


def numbers(table: Table, column: str) -> NDArray[np.float64]:
    """A column as float64, NaN where missing (blank, null, NaN). Raises `TableError` naming the first bad row."""
    parsed, bad = parse_numbers(read_column(table, column), column)
    if bad.any():
        more = f" (the first of {count})" if (count := int(bad.sum())) > 1 else ""
        raise TableError(f"column {column}: row {int(bad.argmax()) + 1} of {len(bad)} is not a finite number{more}")
    return parsed


def parse_numbers(array: pa.Array, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The column `name` as float64, NaN where missing, and which of its rows hold something else, NaN or infinite there."""
    if types.is_string(array.type) or types.is_large_string(array.type) or types.is_string_view(array.type):
        return _parse_texts(array)
    if types.is_null(array.type):
        return np.full(len(array), np.nan), np.zeros(len(array), np.bool_)
    if types.is_decimal(array.type):
        array = array.cast(pa.float64())
    elif not (types.is_floating(array.type) or types.is_integer(array.type) or types.is_boolean(array.type)):
        raise TableError(f"column {name}: expected numbers, found {array.type}")
    parsed = array.to_numpy(zero_copy_only=False).astype(np.float64)
    return parsed, np.isinf(parsed)


def _parse_texts(array: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    try:  # nearly always every cell is a number or null
        parsed = _as_float64(array)
    except pa.ArrowInvalid:
        return _parse_cells(array)
    if np.count_nonzero(np.isnan(parsed)) > array.null_count:  # Arrow takes "nan(1)" too
        return _parse_cells(array)
    return parsed, np.isinf(parsed)


def _parse_cells(array: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    texts = pc.utf8_trim_whitespace(array.cast(pa.large_string()))
    is_number = pc.match_substring_regex(texts, _NUMBER)
    parsed = _as_float64(pc.if_else(is_number, texts, None))
    is_other = pc.and_not(pc.not_equal(texts, ""), is_number).fill_null(False)
    return parsed, is_other.to_numpy(zero_copy_only=False) | np.isinf(parsed)


def _as_float64(array: pa.Array) -> NDArray[np.float64]:
    return np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))


def python_values(array: pa.Array, name: str) -> list[Any]:
    """The column `name` as Python values, None where null. Raises `TableError` for what Python has no value for."""
    type_ = array.type
    try:
        if types.is_temporal(type_) and getattr(type_, "unit", None) == "ns":  # Python counts microseconds
            array = array.cast(_in_microseconds(type_), safe=False)
        return list(array.to_pylist())
    except _UNREADABLE:
        raise TableError(f"column {name}: has values of {type_} that cannot be read") from None


def _in_microseconds(type_: pa.DataType) -> pa.DataType:
    if types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    return pa.time64("us") if types.is_time(type_) else pa.duration("us")


def column_values(table: Table, column: str, *, numeric: bool) -> list[Any]:
    """A column as Python values, None where missing. Raises `TableError`."""
    if not numeric:
        return python_values(read_column(table, column), column)
    return _or_none(numbers(table, column))


def _or_none(parsed: NDArray[np.float64]) -> list[Any]:
    return [None if is_missing(value) else value for value in parsed.tolist()]


def shortened_names(names: Sequence[str], limit: int = 12) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def table_records(table: Table, schema: FeatureSchema, *, rows: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table, or some of them, as records of `schema`; a feature without a column is missing. Raises `TableError`.

    A cell that is no number where one belongs stays as it is, so that the schema refuses its row and no other.
    """
    columns = {
        modality.name: {
            feature.name: _feature_values(table, column, feature, rows)
            for feature in modality.features
            if (column := find_column(table, modality.name, feature)) is not None
        }
        for modality in schema.modalities
    }
    return records_from_columns(columns, table.num_rows if rows is None else len(rows))


def _feature_values(table: Table, column: str, feature: Feature, rows: Sequence[int] | None) -> list[Any]:
    array = read_column(table, column)
    if not isinstance(feature, NumericFeature):
        parts = [array] if rows is None else [array[row : row + 1] for row in rows]
        return [value for part in parts for value in python_values(part, column)]
    parsed, bad = parse_numbers(array, column)
    values: list[Any] = _or_none(parsed)
    for row in bad.nonzero()[0].tolist():
        values[row] = array[row].as_py()
    return values if rows is None else [values[row] for row in rows]


def records_from_columns(columns: Mapping[str, Mapping[str, Sequence[Any]]], num_rows: int) -> Iterator[dict[str, Any]]:
    """Columns by modality and feature, as one record per row."""
    for row in range(num_rows):
        yield {modality: {name: values[row] for name, values in features.items()} for modality, features in columns.items()}
