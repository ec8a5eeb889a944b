"""Training reads table files and their cells as the service does."""

from pathlib import Path

import polars as pl
import pytest

from service.bundle.tables import TableError
from training.data.tables import column_values, numbers, read_table

FRAME = pl.DataFrame(
    {
        "text": ["007", None],
        "category": pl.Series(["a", None], dtype=pl.Categorical),
        "whole": pl.Series([1, None], dtype=pl.Int8),
        "number": [1.5, None],
        "flag": [True, None],
        "day": pl.Series([None, None], dtype=pl.Date),
        "list": [[1.0, 2.0], None],
        "array": pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)),
    }
)


def test_a_parquet_file_comes_back_as_it_was(tmp_path: Path) -> None:
    """Columns and types, by way of Arrow."""
    FRAME.write_parquet(tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet")
    assert found.equals(FRAME)
    assert found.schema == FRAME.schema


def test_csv_is_text(tmp_path: Path) -> None:
    """Leading zeros stay, empty cells are null."""
    (tmp_path / "t.csv").write_text("ward,crea\n007,\n,1\n")
    assert read_table(tmp_path / "t.csv").equals(pl.DataFrame({"ward": ["007", None], "crea": [None, "1"]}))


def test_columns_are_values() -> None:
    """Every kind of column, null where missing."""
    for name in FRAME.columns:
        assert column_values(FRAME, name, numeric=False) == FRAME[name].to_list()


def test_numbers_are_a_series_with_nulls() -> None:
    """So that a label rule compares with null, never with NaN."""
    series = numbers(pl.DataFrame({"x": ["1.5", " ", None, "NaN", "1e3"]}), "x")
    assert (series.name, series.to_list()) == ("x", [1.5, None, None, None, 1000.0])
    assert (series == 1.5).to_list() == [True, None, None, None, False]


def test_what_is_wrong_is_told_as_the_service_tells_it() -> None:
    """The cell's row, or the columns that there are."""
    with pytest.raises(TableError, match="column text: row 1 of 1 is not a finite number"):
        numbers(FRAME.head(1).with_columns(text=pl.lit("x")), "text")
    with pytest.raises(TableError, match="column crea: not in the table, which has text, category"):
        column_values(FRAME, "crea", numeric=False)
