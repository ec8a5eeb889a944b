"""Flat vectors of many records at once: what is read and refused is what record by record would be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from service.bundle.errors import InvalidRecordError
from service.bundle.flat import encode_flat
from service.bundle.schema import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    FeatureSchema,
    Modality,
    NumericFeature,
    TextFeature,
)

FEATURES = (
    NumericFeature(name="crea", minimum=0.5, maximum=10.0),
    CategoricalFeature(name="sex", vocabulary=("female", "male")),
    CodesFeature(name="icd", vocabulary=("I50", "E11")),
)
WORDS = TextFeature(name="note", vocabulary=("a",), idf=(1.0,))
SCHEMA = FeatureSchema(
    modalities=(
        Modality(name="table", features=FEATURES),
        Modality(name="image", features=(ArrayFeature(name="pixels", shape=(2, 1)), WORDS)),
    )
)
cells = st.sampled_from([0.0, 1.0, 2.0, 0.5, np.nan, np.inf, -np.inf, 1e39, 3.4e38])
good = st.sampled_from([0.0, 1.0, np.nan])


def tables(width: int) -> st.SearchStrategy[Any]:
    return numpy_arrays(np.float64, (3, width), elements=cells) | numpy_arrays(np.float64, (3, width), elements=good)


def one_by_one(given: dict[str, Any], schema: FeatureSchema) -> tuple[list[Any], set[tuple[Any, ...]]]:
    """Encoded rows, and the places (modality, record, column) of what is refused."""
    rows, places = [], set()
    for i in range(3):
        try:
            rows.append(schema.encode({name: array[i] for name, array in given.items()}).arrays)
        except InvalidRecordError as error:
            places |= {(p.loc[0], i, *p.loc[1:]) if p.loc else (i,) for p in error.problems}
    return rows, places


@pytest.mark.parametrize("missing", ["learned", "reject"])
@given(table=tables(4), image=st.none() | tables(3), dtype=st.sampled_from([np.float32, np.float64]))
def test_records_are_read_and_refused_as_one_by_one(missing: Any, table: Any, image: Any, dtype: Any) -> None:
    """Same arrays, same places."""
    schema = SCHEMA.model_copy(update={"missing": missing})
    with np.errstate(over="ignore"):
        given = {name: array.astype(dtype) for name, array in (("table", table), ("image", image)) if array is not None}
    rows, places = one_by_one(given, schema)
    if places:
        with pytest.raises(InvalidRecordError) as caught:
            encode_flat(given, 3, schema)
        assert {problem.loc for problem in caught.value.problems} == places
        return
    for name, array in encode_flat(given, 3, schema).arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.stack([row[name] for row in rows]))


def test_no_more_places_than_anyone_reads() -> None:
    """A hostile array does not make a long answer."""
    with pytest.raises(InvalidRecordError) as caught:
        encode_flat({"table": np.full((500, 4), np.inf)}, 500, SCHEMA)
    assert len(caught.value.problems) == 100


def test_absent_is_all_of_a_modality() -> None:
    """One number is enough to be there; what was left out is absent everywhere."""
    found = encode_flat({"table": np.float32([[np.nan, 1.0, np.nan, np.nan]])}, 1, SCHEMA)
    assert {name: records.tolist() for name, records in found.absent.items()} == {"table": [False], "image": [True]}
