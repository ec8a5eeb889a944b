"""Files of rows to records."""

import gzip
import math
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from service.bundle.errors import InvalidRecordError
from service.bundle.schema import ArrayFeature, CategoricalFeature, CodesFeature, FeatureSchema, Modality, NumericFeature
from service.bundle.tables import (
    TableError,
    absent_columns,
    column_values,
    find_column,
    numbers,
    read_table,
    records_from_columns,
    table_records,
)

CREA = NumericFeature(name="crea", minimum=0, maximum=10)
SCHEMA = FeatureSchema(
    modalities=(
        Modality(name="labs", features=(CREA,)),
        Modality(
            name="history",
            features=(
                CategoricalFeature(name="ward", vocabulary=("007", "1", "7")),
                CodesFeature(name="dx", vocabulary=("0010", "I10")),
            ),
        ),
        Modality(name="signal", features=(ArrayFeature(name="ecg", shape=(2,)),)),
    )
)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_all_kinds_of_tables_are_read(tmp_path: Path, name: str) -> None:
    """Csv, compressed csv and parquet are the same table."""
    path, text = tmp_path / name, "crea,ward\n1.5,007\n,7\n"
    if name.endswith(".parquet"):
        pl.DataFrame({"crea": [1.5, None], "ward": ["007", "7"]}).write_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    frame = read_table(str(path))
    assert numbers(frame, "crea").to_list() == [1.5, None]
    assert column_values(frame, "ward", numeric=False) == ["007", "7"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "empty CSV"),
        ("blank.csv", b"\n\n", "empty CSV"),
        ("wide.csv", b"a,b\n1,2\n3,4,5\n", "found more fields"),
        ("binary.csv", bytes(range(256)), "invalid utf-8"),
        ("cut.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 100)[:20], "unexpected end"),
        ("text.parquet", b"a,b\n1,2\n", "parquet"),
        ("empty.parquet", b"", "parquet"),
        ("t.xlsx", b"PK", r"expected a file ending in \.csv, \.csv\.gz, \.parquet"),
        ("folder.csv", "folder", "no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    """An unreadable file is one sentence with its name."""
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(TableError, match=words) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_broken_row_is_not_repeated(tmp_path: Path) -> None:
    """What polars quotes from the file may be a patient's value and stays out of the message."""
    path = tmp_path / "t.csv"
    path.write_text('name,crea\n"Jane Doe,2\n')
    with pytest.raises(TableError, match="cannot be read as a table: could not parse") as caught:
        read_table(path)
    assert "Jane" not in str(caught.value)


def test_a_table_without_rows_has_no_records(tmp_path: Path) -> None:
    """A header alone is a table."""
    (tmp_path / "t.csv").write_text("crea,ward\n")
    frame = read_table(tmp_path / "t.csv")
    assert list(table_records(frame, SCHEMA)) == []
    assert numbers(frame, "crea").to_list() == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1.5", " 2 ", "1e3", "-0.5", "+3"], [1.5, 2, 1000, -0.5, 3]),
        (["", "  ", None, "NaN", "nan"], [None] * 5),
        ([1, 2, None], [1, 2, None]),
        ([1.5, math.nan, None], [1.5, None, None]),
        ([True, False], [1, 0]),
        ([None, None], [None, None]),
    ],
    ids=["text", "blanks", "integers", "floats", "booleans", "nothing"],
)
def test_numbers_are_read_from_any_column(values: list[Any], expected: list[float | None]) -> None:
    """Text, integers, floats and booleans are numbers; blank, null and NaN are missing."""
    assert expected == numbers(pl.DataFrame({"x": values}), "x").to_list()


@pytest.mark.parametrize("junk", ["hemolyzed", "1,5", "inf", "-inf", "1_000", "0x10", "NA", math.inf], ids=repr)
def test_the_first_cell_that_is_no_number_is_named(junk: Any) -> None:
    """The message names column and row, and does not repeat the cell."""
    good = "1" if isinstance(junk, str) else 1.0
    with pytest.raises(TableError) as caught:
        numbers(pl.DataFrame({"crea": [good, None, junk, junk]}), "crea")
    assert str(caught.value) == "column crea: row 3 of 4 is not a finite number"


def test_columns_of_other_types_are_no_numbers() -> None:
    """A date is no number."""
    with pytest.raises(TableError, match="column x: expected numbers, found Date"):
        numbers(pl.DataFrame({"x": [date(2020, 1, 1)]}), "x")


@pytest.mark.parametrize("numeric", [True, False])
def test_a_missing_column_is_named_beside_those_there(numeric: bool) -> None:
    """The message tells which columns there are, not hundreds of them."""
    frame = pl.DataFrame({f"c{i}": [1] for i in range(15)})
    with pytest.raises(TableError, match=r"column crea: not in the table, which has c0, .*, c11 and 3 more$"):
        column_values(frame, "crea", numeric=numeric)
    with pytest.raises(TableError, match=r"which has a$"):
        numbers(pl.DataFrame({"a": [1]}), "crea")


def test_a_column_of_the_modality_comes_first() -> None:
    """`labs.crea` is preferred to `crea`, because two modalities may have a feature of one name."""
    both = pl.DataFrame({"crea": [1.0], "labs.crea": [2.0]})
    assert find_column(both, "labs", CREA) == "labs.crea"
    assert find_column(both, "urine", CREA) == "crea"
    assert find_column(pl.DataFrame({"x": [1]}), "labs", CREA) is None
    assert [record["labs"] for record in table_records(both, SCHEMA)] == [{"crea": 2.0}]


def test_features_without_a_column_are_told() -> None:
    """Absent columns are listed by modality and feature."""
    assert absent_columns(pl.DataFrame({"ward": ["1"], "signal.ecg": [[1.0, 2.0]]}), SCHEMA) == ["labs.crea", "history.dx"]


def test_a_csv_row_becomes_a_record(tmp_path: Path) -> None:
    """Leading zeros stay where text belongs, numbers are numbers, and blanks are missing."""
    path = tmp_path / "t.csv"
    path.write_text("labs.crea,ward,dx\n1.5,007,0010|I10\n,7,\n3,1.0,10\n")
    records = list(table_records(read_table(path), SCHEMA))
    assert records[0] == {"labs": {"crea": 1.5}, "history": {"ward": "007", "dx": "0010|I10"}, "signal": {}}
    encoded = [SCHEMA.encode(record) for record in records]
    assert [row.arrays["history"][0] for row in encoded] == [0.0, 2.0, 1.0]
    assert encoded[0].arrays["history"].tolist() == [0.0, 1.0, 1.0]
    assert encoded[1].missing == ("labs", "history.dx", "signal")
    assert encoded[2].arrays["history"].tolist() == [1.0, 0.0, 0.0]


def test_a_parquet_row_becomes_a_record(tmp_path: Path) -> None:
    """Typed columns, lists and fixed arrays are records like their texts."""
    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {
            "crea": pl.Series([1, None], dtype=pl.Int16),
            "ward": [1.0, math.nan],
            "dx": [["0010"], None],
            "ecg": pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)),
        }
    ).write_parquet(path)
    first, second = table_records(read_table(path), SCHEMA)
    encoded = SCHEMA.encode(first)
    assert {name: row.tolist() for name, row in encoded.arrays.items()} == {
        "labs": [1.0],
        "history": [1.0, 1.0, 0.0],
        "signal": [1.0, 2.0],
    }
    assert encoded.missing == ()
    with pytest.raises(InvalidRecordError, match="has no value that the model knows"):
        SCHEMA.encode(second)


@pytest.mark.parametrize("junk", ["hemolyzed", "inf"])
def test_a_junk_cell_spoils_its_own_row_only(junk: str) -> None:
    """One unreadable cell of a table to score is refused by the schema with its row; the others are answered."""
    first, second, third = table_records(pl.DataFrame({"crea": ["1.5", junk, ""]}), SCHEMA)
    assert SCHEMA.encode(first).arrays["labs"].tolist() == [1.5]
    assert third["labs"] == {"crea": None}
    with pytest.raises(InvalidRecordError, match=r"labs\.crea: must be a number, found a string"):
        SCHEMA.encode(second)


def test_a_column_that_cannot_be_numbers_is_refused_at_once() -> None:
    """A column of dates for a number is a mistake in the table, not in a row, and is told before the first record."""
    with pytest.raises(TableError, match="column crea: expected numbers, found Date"):
        table_records(pl.DataFrame({"crea": [date(2020, 1, 1)]}), SCHEMA)


def test_columns_become_records() -> None:
    """Columns by modality and feature are told row by row."""
    records = list(records_from_columns({"labs": {"crea": [1, 2]}, "note": {}}, 2))
    assert records == [{"labs": {"crea": 1}, "note": {}}, {"labs": {"crea": 2}, "note": {}}]
