"""Files of rows as records: csv, csv.gz and parquet tables, for training and for scoring a file.

Csv cells are read as text and become numbers only where a feature is numeric, so "007" stays a code.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from service.bundle.errors import one_line
from service.bundle.schema import Feature, FeatureSchema, NumericFeature

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")


class TableError(ValueError):
    """A file of rows cannot be used; the message names the file or column and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def read_table(path: Path | str) -> pl.DataFrame:
    """Read a csv, csv.gz or parquet file; every csv column comes as text. Raises `TableError`."""
    path = Path(path)
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    try:
        if path.name.endswith(".parquet"):
            return pl.read_parquet(path, glob=False)
        if path.name.endswith((".csv", ".csv.gz")):
            return pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as a table: {polars_reason(error)}") from None
    raise TableError(f"{path}: expected a file ending in {', '.join(TABLE_SUFFIXES)}")


def read_batches(path: Path, num_rows: int) -> Iterator[pl.DataFrame]:
    """The table as `read_table` reads it, some rows at a time and in order. Raises `TableError`.

    Only those are in memory, and of a parquet file the row group that they are in: polars decodes it whole.
    """
    if not path.is_file() or not path.name.endswith(TABLE_SUFFIXES):
        yield read_table(path)  # says what is wrong
        return
    try:
        scan = (
            pl.scan_parquet(path, glob=False)
            if path.name.endswith(".parquet")
            else pl.scan_csv(path, infer_schema=False, glob=False)
        )
        yield from scan.collect_batches(chunk_size=num_rows, maintain_order=True)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as a table: {polars_reason(error)}") from None


def count_rows(path: Path) -> int | None:
    """How many rows a parquet file says it has; None for files that would have to be read for it."""
    if not path.name.endswith(".parquet"):
        return None
    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError):
        return None


def polars_reason(error: Exception) -> str:
    """The start of an error of polars. What follows a backquote may be a cell's content, which no message may hold."""
    return (str(error).partition("`")[0].strip() or type(error).__name__).splitlines()[0]


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        raise TableError(f"column {name}: not in the table, which has {_shortened(frame.columns)}")
    return frame.get_column(name)


def numbers(frame: pl.DataFrame, column: str) -> pl.Series:
    """A column as float64, null where missing (blank, null, NaN). Raises `TableError` naming the first bad row."""
    parsed, bad = parse_numbers(_column(frame, column))
    if bad.any():
        raise TableError(f"column {column}: row {int(bad.arg_true()[0]) + 1} of {len(bad)} is not a finite number")
    return parsed


def parse_numbers(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """A column as float64, null where missing, and which of its rows hold something else."""
    if series.dtype == pl.String:
        series = series.str.strip_chars()
        series = series.set(series == "", None)
        cast = series.cast(pl.Float64, strict=False)
    elif series.dtype.is_numeric() or series.dtype in {pl.Boolean, pl.Null}:
        cast = series.cast(pl.Float64)
    else:
        raise TableError(f"column {series.name}: expected numbers, found {series.dtype}")
    bad = cast.is_null() & series.is_not_null() | cast.is_infinite().fill_null(value=False)
    return cast.fill_nan(None), bad


def column_values(frame: pl.DataFrame, column: str, *, numeric: bool) -> list[Any]:
    """A column as Python values, None where missing. Raises `TableError`."""
    return numbers(frame, column).to_list() if numeric else _column(frame, column).to_list()


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
    """The rows of a table as records of `schema`; a feature without a column is missing. Raises `TableError`.

    A cell that is no number where one belongs stays as it is, so that the schema refuses its row and no other.
    """
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
    series = _column(frame, column)
    if not isinstance(feature, NumericFeature):
        return series.to_list()
    parsed, bad = parse_numbers(series)
    values = parsed.to_list()
    for row in bad.arg_true():
        values[row] = series[row]
    return values


def records_from_columns(columns: Mapping[str, Mapping[str, Sequence[Any]]], num_rows: int) -> Iterator[dict[str, Any]]:
    """Columns by modality and feature, as one record per row."""
    for row in range(num_rows):
        yield {modality: {name: values[row] for name, values in features.items()} for modality, features in columns.items()}
