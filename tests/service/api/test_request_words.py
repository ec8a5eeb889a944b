"""What a client reads when a body cannot be read, and that bodies are read alike quickly and place by place."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.api.errors import InvalidInputError, InvalidJsonError
from service.api.requests import RequestReader
from service.bundle.schema import FeatureSchema
from tests.tiny_bundle import tiny_schema


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "expected a JSON object, found an empty body"),
        (b"  \n", "expected a JSON object, found an empty body"),
        (b"[1]", "expected a JSON object, found a list"),
        (b'{"labs": {"crea": NaN}}', "expected finite numbers, or null for a missing value, found NaN or infinity"),
        (b'{"labs": {"crea": -Infinity}}', "found NaN or infinity, which JSON does not have"),
        (b'{"labs": {', "the body is not JSON"),
        (b'{"instances": [{"id": "M\xfcller", "labs": [1, 140]}]}', "the body is not JSON"),
        (b'{"instances": [{"l\xe4bs": [1, 140]}]}', "the body is not JSON"),
    ],
)
def test_an_unreadable_body_is_told_by_its_fault(body: bytes, told: str) -> None:
    """Each fault has its own words."""
    with pytest.raises(InvalidJsonError) as error:
        RequestReader(tiny_schema(), max_instances=4).read(body)
    assert told in str(error.value)


class Thorough(RequestReader):
    """Judges every body place by place."""

    def _decoded(self, body: bytes) -> None:
        del body


SCHEMA = tiny_schema()
QUICK, THOROUGH = (reader(SCHEMA, max_instances=4) for reader in (RequestReader, Thorough))

cells = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
modalities = (
    st.lists(cells, max_size=3)
    | st.lists(st.floats(0, 1), min_size=2, max_size=2)
    | st.dictionaries(st.sampled_from(["crea", "sod", "age", "sex", "weight"]), cells, max_size=3)
    | cells
)
records = st.dictionaries(st.sampled_from(["labs", "history", "images"]), modalities, max_size=3)
named = st.builds(lambda record, record_id: record | record_id, records, st.just({}) | st.builds(lambda v: {"id": v}, cells))
bodies = st.builds(
    lambda instances, explain, more: {"instances": instances} | explain | more,
    st.lists(named | cells, max_size=5) | cells,
    st.just({}) | st.builds(lambda v: {"explain": v}, st.sampled_from([True, False, "features", "all", 1, None])),
    st.just({}) | st.just({"instance": []}),
)


def read(reader: RequestReader, body: bytes) -> Any:
    """What came out, arrays as bytes; or how it was refused."""
    try:
        parsed = reader.read(body)
    except (InvalidInputError, InvalidJsonError) as error:
        return type(error), str(error), error.detail
    told = [
        (i.id, type(i.id), i.problems)
        if i.encoded is None
        else (i.id, i.encoded.missing, i.encoded.warnings, {name: row.tobytes() for name, row in i.encoded.arrays.items()})
        for i in parsed.instances
    ]
    return told, parsed.explain, parsed.with_features


@example({"instances": [{"id": "a", "labs": [1, None], "history": {"age": 50, "sex": "male"}}, {"id": 7, "labs": [0.5, -1e300]}]})
@example({"instances": [{"labs": [True, 1.0]}, {"labs": [10**400, 1]}, {"id": True, "labs": [1, 2]}], "explain": False})
@given(bodies | named)
def test_a_body_is_read_alike_by_both_ways(document: Any) -> None:
    """The decoder of the schema changes nothing of what is read or told."""
    body = json.dumps(document).encode()
    assert read(QUICK, body) == read(THOROUGH, body)


def test_a_usual_body_is_read_by_the_decoder() -> None:
    """What the test above compares is two ways: flat vectors with gaps, named features, ids and all ways to explain."""
    records = [{"id": "a", "labs": [1.0, None]}, {"id": 2, "history": {"sex": "male"}}, {"labs": None, "history": [60, 1]}]
    for explain in (True, False, "features"):
        assert QUICK._decoded(json.dumps({"instances": records, "explain": explain}).encode()) is not None
    assert QUICK._decoded(json.dumps({"instances": records}).encode()) is not None


def test_a_modality_may_have_any_name_that_a_recipe_takes() -> None:
    """Words of Python's own are names like any other."""
    labs, history = SCHEMA.modalities
    schema = FeatureSchema(modalities=(labs.model_copy(update={"name": "class"}), history.model_copy(update={"name": "self"})))
    (instance,) = RequestReader(schema, max_instances=1).read(b'{"instances": [{"class": [1, 140], "self": [60, 0]}]}').instances
    assert instance.encoded is not None
    assert instance.encoded.arrays["class"].tolist() == [1, 140]


def test_a_body_nested_without_end_is_refused() -> None:
    """Depth is an error of the body, not of the service."""
    with pytest.raises(InvalidJsonError, match="the body is not JSON"):
        QUICK.read(b'{"instances": [{"labs": {"crea": ' + b"[" * 100_000)
