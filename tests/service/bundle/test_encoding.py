"""Rows of a table are encoded as their records would be, one by one."""

import math
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import encoding
from service.bundle.encoding import EncodedBatch, encode_records, encode_table
from service.bundle.features import FloatArray
from service.bundle.schema import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    FeatureSchema,
    Modality,
    NumericFeature,
    TextFeature,
)
from service.bundle.tables import Table, TableError, column_values, table_records

SCHEMA = FeatureSchema(
    modalities=(
        Modality(
            name="table",
            features=(
                NumericFeature(name="crea", minimum=0.5, maximum=10.0),
                NumericFeature(name="sod", minimum=110, maximum=170),
                CategoricalFeature(name="sex", vocabulary=("female", "male", "1", "true")),
            ),
        ),
        Modality(
            name="notes",
            features=(
                CodesFeature(name="icd", vocabulary=("I50", "E11")),
                TextFeature(name="note", vocabulary=("pain", "chest"), idf=(1.0, 2.0)),
            ),
        ),
        Modality(name="image", features=(ArrayFeature(name="pixels", shape=(2, 2)),)),
    )
)

numbers = st.none() | st.floats(width=32) | st.sampled_from([0.5, 10.0, 140.0, 1e38, -1e300])
texts = st.none() | st.sampled_from(["", " ", "male", "male ", "TRUE", "1.0", "4", "-3.5", "1e400", "nan", "inf", "x", "0x1"])
words = st.none() | st.sampled_from(["I50", "I50|E11", "X", "E11|X", "", "|", "chest pain", "Pain!", "nothing"])
pixels = st.none() | st.lists(st.none() | st.floats(width=32), min_size=0, max_size=5) | st.just([1.0, 2.0, 3.0, 4.0])
pixels4 = st.lists(st.none() | st.floats(width=32), min_size=4, max_size=4)
full = st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4)


SPELLINGS = {  # types of the same values
    pa.large_string(): [pa.string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    pa.large_list(pa.large_string()): [pa.list_(pa.string()), pa.large_list(pa.string_view())],
    pa.large_list(pa.float32()): [pa.list_(pa.float32()), pa.large_list(pa.float64())],
}


def column(cells: Any, dtype: Any, size: int) -> Any:
    return st.lists(cells, min_size=size, max_size=size).map(lambda values: pl.Series(values, dtype=dtype, strict=False))


@st.composite
def tables(draw: Any) -> Table:
    """Tables of some rows with some of the columns, of different types."""
    size = draw(st.integers(0, 4))
    kinds = {
        "id": st.one_of(column(st.none() | st.text(max_size=2), pl.String, size), column(st.integers(0, 9), pl.Int64, size)),
        "crea": st.one_of(
            column(numbers, pl.Float64, size), column(texts, pl.String, size), column(st.booleans(), pl.Boolean, size)
        ),
        "table.sod": st.one_of(column(st.integers(0, 200), pl.Int64, size), column(numbers, pl.Float32, size)),
        "sex": st.one_of(
            column(texts, pl.String, size),
            column(texts, pl.Categorical, size),
            column(st.none() | st.booleans(), pl.Boolean, size),
            column(st.none() | st.integers(0, 2), pl.Int8, size),
            column(st.none() | st.sampled_from([1.0, 2.5, math.nan]), pl.Float64, size),
            column(st.none() | st.dates(), pl.Date, size),
            column(st.lists(st.sampled_from(["male"])), pl.List(pl.String), size),
        ),
        "icd": st.one_of(
            column(words, pl.String, size), column(st.lists(st.sampled_from(["I50", "X"])), pl.List(pl.String), size)
        ),
        "note": st.one_of(column(words, pl.String, size), column(st.integers(0, 2), pl.Int64, size)),
        "pixels": st.one_of(
            column(pixels, pl.List(pl.Float64), size),
            column(full, pl.List(pl.Float32), size),
            column(full, pl.Array(pl.Float32, 4), size),
            column(full.map(lambda p: [p[:2], p[2:]]), pl.Array(pl.Float64, (2, 2)), size),
            column(full.map(lambda p: [p]), pl.Array(pl.Float64, (1, 4)), size),
            column(st.none() | pixels4, pl.Array(pl.Float32, 4), size),
            column(full.map(lambda p: [p[:2], p[2:]]), pl.List(pl.List(pl.Float64)), size),
            column(full.map(lambda p: [p[:2], p[2:]]), pl.Array(pl.List(pl.Float64), 2), size),
            column(full.map(lambda p: [p[:2], p[2:]]), pl.List(pl.Array(pl.Float64, 2)), size),
            column(st.lists(st.integers(0, 3), min_size=4, max_size=4), pl.List(pl.Int32), size),
        ),
    }
    names = draw(st.lists(st.sampled_from(sorted(kinds)), unique=True))
    table = pl.DataFrame({name: draw(kinds[name]) for name in names} or {"other": [0] * size}).to_arrow()
    if draw(st.booleans()):
        table = table.cast(pa.schema([(f.name, draw(st.sampled_from(SPELLINGS.get(f.type, [f.type])))) for f in table.schema]))
    if draw(st.booleans()) and size:
        (batch,) = table.combine_chunks().to_batches()
        return batch[draw(st.integers(0, size)) :]  # arrays that begin in the middle of others
    return table


def told(batch: EncodedBatch) -> tuple[Any, ...]:
    refusals = {row: [(p.loc, p.type, p.msg) for p in error.problems] for row, error in batch.refusals.items()}
    arrays = {name: (x.dtype, x.shape, one_nan(x).tobytes()) for name, x in batch.arrays.items()}
    return batch.ids, arrays, batch.sent, refusals


def one_nan(x: FloatArray) -> FloatArray:
    """NaN has many spellings, with a sign for one, and all are missing."""
    return np.where(np.isnan(x), np.float32(np.nan), x)


@pytest.mark.parametrize("missing", ["learned", "reject"])
@settings(deadline=None, max_examples=300)
@given(table=tables())
def test_rows_are_encoded_as_records_one_by_one(missing: Any, table: Table) -> None:
    """Ids, arrays to the bit, gaps, warnings, refusals and their words."""
    schema = SCHEMA.model_copy(update={"missing": missing})
    has_ids = "id" in table.schema.names
    ids = column_values(table, "id", numeric=False) if has_ids else [None] * table.num_rows
    records = [{"id": i, **record} for i, record in zip(ids, table_records(table, schema), strict=True)]
    assert told(encode_table(table, schema)) == told(encode_records(records, schema))


def test_numbers_in_a_row_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and arrays of the right length and type; not cell by cell."""
    monkeypatch.setattr(encoding, "_read_cells", pytest.fail)
    cells = np.arange(8, dtype=np.float32).reshape(2, 4)
    for array in (
        pa.array(cells.tolist(), pa.list_(pa.float32(), 4)),
        pa.array(cells.reshape(2, 2, 2).tolist(), pa.list_(pa.list_(pa.float32(), 2), 2)),
        pa.array(cells.tolist()),
        pa.array(cells.tolist(), pa.large_list(pa.float64())),
        pa.array([[0, 1, 2, 3], [4, 5, 6, 7]]),
    ):
        batch = encode_table(pa.table({"pixels": array}), SCHEMA)
        np.testing.assert_array_equal(batch.arrays["image"], cells)


def test_a_category_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows have it."""
    calls = []
    encode = CategoricalFeature.encode
    monkeypatch.setattr(CategoricalFeature, "encode", lambda self, value: calls.append(value) or encode(self, value))
    batch = encode_table(pa.table({"sex": ["male", "female", None, "male", "x", "x"], "crea": [1.0] * 6}), SCHEMA)
    assert calls == ["male", "female", "x"]
    assert [len(sent.warnings) for sent in batch.sent] == [0, 0, 0, 0, 1, 1]


def test_a_column_that_cannot_be_numbers_ends_it() -> None:
    """No row could be read."""
    with pytest.raises(TableError, match="expected numbers, found list"):
        encode_table(pa.table({"crea": [[1.0]]}), SCHEMA)
