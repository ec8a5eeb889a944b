"""Files of rows as records: csv, csv.gz and parquet tables, for training and for scoring a file.

Csv cells are read as text and become numbers only where a feature is numeric, so "007" stays a code.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from service.bundle.schema import ArrayFeature, CodesFeature, Feature, FeatureSchema, NumericFeature

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")


class TableError(ValueError):
    """A file of rows cannot be used; the message names the file or column and what was expected."""


def read_table(path: Path | str) -> pl.DataFrame:
    """Read a csv, csv.gz or parquet file; every csv column comes as text, blanks as null. Raises `TableError`."""
    path = Path(path)
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    try:
        if path.name.endswith(".parquet"):
            return pl.read_parquet(path)
        if path.name.endswith((".csv", ".csv.gz")):
            return pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TableError(f"{path}: cannot be read as {path.suffix.lstrip('.')}: {reason}") from None
    raise TableError(f"{path}: expected a file ending in {', '.join(TABLE_SUFFIXES)}")


def numbers(frame: pl.DataFrame, column: str) -> pl.Series:
    """A column as float64, null where missing (blank, null, NaN). Raises `TableError` naming the first bad row."""
    series = frame.get_column(column)
    if series.dtype == pl.String:
        series = series.str.strip_chars()
        series = series.set(series == "", None)
        cast = series.cast(pl.Float64, strict=False)
    elif series.dtype.is_numeric() or series.dtype in {pl.Boolean, pl.Null}:
        cast = series.cast(pl.Float64)
    else:
        raise TableError(f"column {column}: expected numbers, found {series.dtype}")
    bad = cast.is_null() & series.is_not_null() | cast.is_infinite().fill_null(value=False)
    if bad.any():
        raise TableError(f"column {column}: row {int(bad.arg_true()[0]) + 1} of {len(series)} is not a finite number")
    return cast.fill_nan(None)


def column_values(frame: pl.DataFrame, column: str, *, numeric: bool) -> list[Any]:
    """A column as Python values, None where missing. Raises `TableError`."""
    if column not in frame.columns:
        raise TableError(f"column {column}: not in the table, which has {_shortened(frame.columns)}")
    return numbers(frame, column).to_list() if numeric else frame.get_column(column).to_list()


def _shortened(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find_column(frame: pl.DataFrame, modality: str, feature: Feature) -> str | None:
    """The column that holds a feature: `labs.crea` if there is one, else `crea`, else None."""
    return next((name for name in (f"{modality}.{feature.name}", feature.name) if name in frame.columns), None)


def absent_columns(frame: pl.DataFrame, schema: FeatureSchema) -> list[str]:
    """Features of the schema for which the table has no column."""
    return [
        f"{modality.name}.{feature.name}"
        for modality in schema.modalities
        for feature in modality.features
        if find_column(frame, modality.name, feature) is None
    ]


def table_records(frame: pl.DataFrame, schema: FeatureSchema) -> Iterator[dict[str, Any]]:
    """The rows of a table as records of `schema`; a feature without a column is missing. Raises `TableError`."""
    columns = {
        modality.name: {
            feature.name: _feature_values(frame, column, feature)
            for feature in modality.features
            if (column := find_column(frame, modality.name, feature)) is not None
        }
        for modality in schema.modalities
    }
    return records_from_columns(columns, frame.height)


def _feature_values(frame: pl.DataFrame, column: str, feature: Feature) -> list[Any]:
    values = column_values(frame, column, numeric=isinstance(feature, NumericFeature))
    if isinstance(feature, ArrayFeature | CodesFeature):
        return [value.to_list() if isinstance(value, pl.Series) else value for value in values]
    return values


def records_from_columns(columns: Mapping[str, Mapping[str, Sequence[Any]]], num_rows: int) -> Iterator[dict[str, Any]]:
    """Columns by modality and feature, as one record per row."""
    for row in range(num_rows):
        yield {modality: {name: values[row] for name, values in features.items()} for modality, features in columns.items()}
