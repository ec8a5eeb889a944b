"""Rows of tables to records, and what a cell means."""

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.errors import InvalidRecordError
from service.bundle.schema import ArrayFeature, CategoricalFeature, CodesFeature, FeatureSchema, Modality, NumericFeature
from service.bundle.tables import (
    TableError,
    absent_columns,
    column_values,
    find_column,
    numbers,
    parse_numbers,
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1.5", " 2 ", "1e3", "-0.5", "+3"], [1.5, 2, 1000, -0.5, 3]),
        (["", "  ", None, "NaN", "nan"], [None] * 5),
        ([1, 2, None], [1, 2, None]),
        ([1.5, math.nan, None], [1.5, None, None]),
        ([True, False], [1, 0]),
        ([True, None], [1, None]),
        ([None, None], [None, None]),
        (pa.array([2**64 - 1, None], pa.uint64()), [float(2**64 - 1), None]),
        (pa.array([np.float16(1.5), None], pa.float16()), [1.5, None]),
        (pa.array([Decimal("1.25"), None], pa.decimal128(5, 2)), [1.25, None]),
        (pa.array(["2", None, "x2"], pa.string_view())[:2], [2, None]),
        (pa.array(["2", None, " "], pa.large_string()), [2, None, None]),
        (pa.array(["2", None, "2"]).dictionary_encode(), [2, None, 2]),
        (pa.array([2.5, None]).dictionary_encode(), [2.5, None]),
        (pa.chunked_array([["1"], [], [None, "3"]]), [1, None, 3]),
        (pa.chunked_array([], pa.int64()), []),
    ],
    ids="text blank int float bool flag nothing uint64 half decimal view large category number chunks none".split(),  # noqa: SIM905
)
def test_numbers_are_read_from_any_column(values: Any, expected: list[float | None]) -> None:
    """Text, integers, floats, decimals and booleans are numbers, however they are stored; blank, null and NaN are missing."""
    assert column_values(pa.table({"x": values}), "x", numeric=True) == expected


spellings = st.text("0123456789+-.eE_x, \t\u00a0infatyINFATY()", max_size=8) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x1c\x1d\x1e\x1f"), max_size=4
)  # those separators are spaces to Python and Arrow, not to polars
odd = [
    ".",
    "1e",
    "e5",
    "5.",
    ".5",
    "+.5e-3",
    "--5",
    "+-5",
    "- 5",
    "1e400",
    "1e-400",
    "0x10",
    "1d5",
    "1f",
    "nan(1)",
    "+nan",
    "-INF",
]
odd += [
    "infinity",
    "infinit",
    "TRUE",
    "1 000",
    "1\x00",
    "\u0663",
    "\uff11",
    "\u22125",
    "\ufeff5",
    "\u20035",
    "9" * 400,
    "1.7976931348623159e308",
]


@settings(deadline=None, max_examples=500)
@given(cells=st.lists(st.none() | spellings | st.sampled_from(odd), min_size=1, max_size=5))
def test_the_spellings_of_numbers_are_those_of_polars(cells: list[str | None]) -> None:
    """Which text is a number, and which one: as polars casts it once it is stripped, which decided before Arrow did."""
    parsed, bad = parse_numbers(pa.array(cells, pa.string()), "x")
    for cell, number, is_bad in zip(cells, parsed, bad, strict=True):
        stripped = None if cell is None else pl.Series([cell]).str.strip_chars()[0]
        expected = pl.Series([stripped or None], dtype=pl.String).cast(pl.Float64, strict=False)[0]
        assert is_bad == (bool(stripped) and (expected is None or math.isinf(expected)))
        assert is_bad or number == expected or (math.isnan(number) and (expected is None or math.isnan(expected)))


@pytest.mark.parametrize("junk", ["hemolyzed", "1,5", "inf", "-inf", "1_000", "0x10", "NA", math.inf], ids=repr)
def test_the_first_cell_that_is_no_number_is_named(junk: Any) -> None:
    """The message names column and row and how many there are, and does not repeat the cell."""
    good = "1" if isinstance(junk, str) else 1.0
    for rows, more in (([junk, good], ""), ([junk, junk], " (the first of 2)")):
        with pytest.raises(TableError) as caught:
            numbers(pa.table({"crea": [good, None, *rows]}), "crea")
        assert str(caught.value) == f"column crea: row 3 of 4 is not a finite number{more}"


def test_columns_of_other_types_are_no_numbers() -> None:
    """A date is no number."""
    with pytest.raises(TableError, match="column x: expected numbers, found date32"):
        numbers(pa.table({"x": [date(2020, 1, 1)]}), "x")


@pytest.mark.parametrize(
    "cells",
    [pa.array([{"a": 1}]), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))],
    ids=["struct", "map"],
)
def test_columns_of_objects_are_refused(cells: pa.Array) -> None:
    """No feature is made of them, and a column is told once, not row by row."""
    with pytest.raises(TableError, match="column ward: expected plain values or lists, found"):
        table_records(pa.table({"ward": cells}), SCHEMA)


def test_times_are_values_as_far_as_python_has_them() -> None:
    """Nanoseconds are cut to microseconds; what lies beyond the year 9999, or in a zone that nobody knows, is told."""
    times = pa.array([1_700_000_000_123_456_789, None])
    for type_, kind in ((pa.timestamp("ns"), datetime), (pa.duration("ns"), timedelta)):
        found = column_values(pa.table({"t": times.cast(type_)}), "t", numeric=False)
        assert isinstance(found[0], kind)
        assert found[1] is None
    assert column_values(pa.table({"t": pa.array([1001], pa.time64("ns"))}), "t", numeric=False) == [time(0, 0, 0, 1)]
    for unreadable in (pa.array([2**62], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "No/Where"))):
        with pytest.raises(TableError, match=r"column t: has values of timestamp.* that cannot be read"):
            column_values(pa.table({"t": unreadable}), "t", numeric=False)


def test_extension_types_are_what_they_are_stored_as() -> None:
    """A tensor is its list."""
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2]], pa.list_(pa.float32(), 2))
    )
    assert column_values(pa.table({"ecg": tensors}), "ecg", numeric=False) == [[1.0, 2.0]]


@pytest.mark.parametrize("numeric", [True, False])
def test_a_missing_column_is_named_beside_those_there(numeric: bool) -> None:
    """The message tells which columns there are, not hundreds of them."""
    frame = pa.table({f"c{i}": [1] for i in range(15)})
    with pytest.raises(TableError, match=r"column crea: not in the table, which has c0, .*, c11 and 3 more$"):
        column_values(frame, "crea", numeric=numeric)
    with pytest.raises(TableError, match=r"which has a$"):
        numbers(pa.table({"a": [1]}), "crea")


def test_a_column_of_the_modality_comes_first() -> None:
    """`labs.crea` is preferred to `crea`, because two modalities may have a feature of one name."""
    both = pa.table({"crea": [1.0], "labs.crea": [2.0]})
    assert find_column(both, "labs", CREA) == "labs.crea"
    assert find_column(both, "urine", CREA) == "crea"
    assert find_column(pa.table({"x": [1]}), "labs", CREA) is None
    assert [record["labs"] for record in table_records(both, SCHEMA)] == [{"crea": 2.0}]


def test_features_without_a_column_are_told() -> None:
    """Absent columns are listed by modality and feature."""
    assert absent_columns(pa.table({"ward": ["1"], "signal.ecg": [[1.0, 2.0]]}), SCHEMA) == ["labs.crea", "history.dx"]


def test_a_row_of_texts_becomes_a_record() -> None:
    """Leading zeros stay where text belongs, numbers are numbers, and blanks are missing."""
    columns = {"labs.crea": ["1.5", None, "3"], "ward": ["007", "7", "1.0"], "dx": ["0010|I10", None, "10"]}
    records = list(table_records(pa.table(columns), SCHEMA))
    assert records[0] == {"labs": {"crea": 1.5}, "history": {"ward": "007", "dx": "0010|I10"}, "signal": {}}
    encoded = [SCHEMA.encode(record) for record in records]
    assert [row.arrays["history"][0] for row in encoded] == [0.0, 2.0, 1.0]
    assert encoded[0].arrays["history"].tolist() == [0.0, 1.0, 1.0]
    assert encoded[1].missing == ("labs", "history.dx", "signal")
    assert encoded[2].arrays["history"].tolist() == [1.0, 0.0, 0.0]


def test_a_row_of_typed_cells_becomes_a_record() -> None:
    """Typed columns, lists and fixed arrays are records like their texts."""
    table = pa.table(
        {
            "crea": pa.array([1, None], pa.int16()),
            "ward": [1.0, math.nan],
            "dx": [["0010"], None],
            "ecg": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
        }
    )
    first, second = table_records(table, SCHEMA)
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
    first, second, third = table_records(pa.table({"crea": ["1.5", junk, ""]}), SCHEMA)
    assert SCHEMA.encode(first).arrays["labs"].tolist() == [1.5]
    assert third["labs"] == {"crea": None}
    with pytest.raises(InvalidRecordError, match=r"labs\.crea: must be a number, found a string"):
        SCHEMA.encode(second)


def test_a_column_that_cannot_be_numbers_is_refused_at_once() -> None:
    """A column of dates for a number is a mistake in the table, not in a row, and is told before the first record."""
    with pytest.raises(TableError, match="column crea: expected numbers, found date32"):
        table_records(pa.table({"crea": [date(2020, 1, 1)]}), SCHEMA)


def test_columns_become_records() -> None:
    """Columns by modality and feature are told row by row."""
    records = list(records_from_columns({"labs": {"crea": [1, 2]}, "note": {}}, 2))
    assert records == [{"labs": {"crea": 1}, "note": {}}, {"labs": {"crea": 2}, "note": {}}]
