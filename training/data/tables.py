"""Training's tables are polars frames. What is a table file and what its cells mean, the service's modules alone decide."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from service.bundle import table_files, tables


def read_table(path: Path) -> pl.DataFrame:
    """`service.bundle.table_files.read_table` as a frame. Raises `TableError`."""
    frame = pl.from_arrow(table_files.read_table(path))
    assert isinstance(frame, pl.DataFrame)
    return frame


def numbers(frame: pl.DataFrame, column: str) -> pl.Series:
    """`service.bundle.tables.numbers` as a series, null where missing. Raises `TableError`."""
    return pl.Series(column, tables.numbers(_arrow(frame, column), column), nan_to_null=True)


def column_values(frame: pl.DataFrame, column: str, *, numeric: bool) -> Sequence[Any]:
    """`service.bundle.tables.column_values`. Raises `TableError`."""
    return tables.column_values(_arrow(frame, column), column, numeric=numeric)


def _arrow(frame: pl.DataFrame, column: str) -> pa.Table:
    """The column alone, since Arrow's texts are not polars'; where it is absent, the names of those there are."""
    return (frame.select(column) if column in frame.columns else frame.clear()).to_arrow()


def polars_reason(error: Exception) -> str:
    """The start of an error of polars. What follows a backquote may be a cell's content, which no message may hold."""
    return (str(error).partition("`")[0].strip() or type(error).__name__).splitlines()[0]
