"""Records to arrays: what a schema promises for every record, good or bad."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.errors import InvalidRecordError, Problem
from service.bundle.schema import (
    MAX_PROBLEMS,
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    Feature,
    FeatureSchema,
    Modality,
    NumericFeature,
    TextFeature,
)

SCHEMA = FeatureSchema(
    modalities=(
        Modality(
            name="labs",
            features=(
                NumericFeature(name="crea", unit="mg/dL", minimum=0.1, maximum=11.8),
                NumericFeature(name="num.co", minimum=0, maximum=9),
            ),
        ),
        Modality(
            name="history",
            features=(
                CategoricalFeature(name="sex", vocabulary=("female", "male")),
                CodesFeature(name="dx", vocabulary=("0010", "E11", "I10")),
            ),
        ),
        Modality(name="note", features=(TextFeature(name="text", vocabulary=("fever", "pain"), idf=(1.25, 2.5)),)),
        Modality(name="image", features=(ArrayFeature(name="pixels", shape=(2, 2)),)),
    )
)
NEEDY = SCHEMA.model_copy(update={"missing": "reject"})
GOOD: dict[str, Any] = {
    "id": "stay-1",
    "labs": {"crea": 1.5, "num.co": 2},
    "history": {"sex": "male", "dx": "0010|I10"},
    "note": {"text": "pain"},
    "image": {"pixels": [[0, 1], [2, 3]]},
}
WIDTHS = {"labs": 2, "history": 4, "note": 2, "image": 4}
SENTINEL = "Jane-Doe-31415926"

absent = st.sampled_from([None, math.nan, "", " "])
number = st.floats(-1e30, 1e30) | st.integers(-(10**20), 10**20)
values = {
    "crea": number,
    "num.co": number,
    "sex": st.sampled_from(["female", "male", "other"]) | st.integers(0, 3) | st.booleans(),
    "dx": st.lists(st.sampled_from(["0010", "E11", "I10", "10"])) | st.sampled_from(["0010|I10", "|"]),
    "text": st.text(min_size=1, max_size=20),
    "pixels": st.lists(st.lists(number | st.none(), min_size=2, max_size=2), min_size=2, max_size=2),
}


def named(modality: Modality) -> st.SearchStrategy[Any]:
    """Any valid named form of one modality, or nothing."""
    fields = {feature.name: values[feature.name] | absent for feature in modality.features}
    return st.none() | st.fixed_dictionaries({}, optional=fields)


anything = st.fixed_dictionaries({}, optional={m.name: named(m) for m in SCHEMA.modalities} | {"id": st.text(max_size=3)})


def holds_something(record: Mapping[str, Any]) -> bool:
    """Whether the schema accepts the record; the only reason why it may not is that it holds nothing."""
    try:
        SCHEMA.encode(record)
    except InvalidRecordError as error:
        if error.problems[0].type != "missing":
            raise
        return False
    return True


records = anything.filter(holds_something)


def problems(record: Any, schema: FeatureSchema = SCHEMA) -> dict[tuple[str | int, ...], str]:
    """What is wrong with a record: place to type."""
    with pytest.raises(InvalidRecordError) as caught:
        schema.encode(record)
    return {problem.loc: problem.type for problem in caught.value.problems}


@settings(deadline=None)
@given(records)
def test_a_record_becomes_one_row_per_modality(record: dict[str, Any]) -> None:
    """Any valid record becomes float32 rows of the declared widths, NaN exactly where something is told to be missing."""
    encoded = SCHEMA.encode(record)
    assert {name: row.shape for name, row in encoded.arrays.items()} == {name: (width,) for name, width in WIDTHS.items()}
    assert {row.dtype for row in encoded.arrays.values()} == {np.dtype(np.float32)}
    assert not any(np.isinf(row).any() for row in encoded.arrays.values())
    for modality in SCHEMA.modalities:
        row = encoded.arrays[modality.name]
        gaps = [f"{modality.name}.{f.name}" for f, columns in modality.columns() if np.isnan(row[columns]).any()]
        told = [name for name in encoded.missing if name.split(".")[0] == modality.name]
        assert told == ([modality.name] if np.isnan(row).all() else gaps)


@settings(deadline=None)
@given(st.lists(records, max_size=4))
def test_many_records_are_their_rows_stacked(many: list[dict[str, Any]]) -> None:
    """Encoding many records at once is stacking single ones."""
    arrays = SCHEMA.encode_many(many)
    assert {name: array.shape for name, array in arrays.items()} == {name: (len(many), width) for name, width in WIDTHS.items()}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    for i, record in enumerate(many):
        for name, row in SCHEMA.encode(record).arrays.items():
            np.testing.assert_array_equal(arrays[name][i], row)


@settings(deadline=None)
@given(records)
def test_the_flat_form_is_the_named_form(record: dict[str, Any]) -> None:
    """The rows of a record, sent as flat vectors, are encoded as themselves."""
    encoded = SCHEMA.encode(record)
    flat = {name: [None if math.isnan(cell) else cell for cell in row.tolist()] for name, row in encoded.arrays.items()}
    again = SCHEMA.encode(flat)
    assert encoded.missing == again.missing
    for name, row in encoded.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], row)


@settings(deadline=None)
@given(records)
def test_a_schema_read_back_from_json_encodes_the_same(record: dict[str, Any]) -> None:
    """The manifest's copy of a schema encodes bit for bit as the one training fitted."""
    reread = FeatureSchema.model_validate_json(SCHEMA.model_dump_json())
    assert reread == SCHEMA
    found, expected = reread.encode(record), SCHEMA.encode(record)
    assert (expected.missing, expected.warnings) == (found.missing, found.warnings)
    for name, row in expected.arrays.items():
        assert row.tobytes() == found.arrays[name].tobytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, 1e300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
junk = st.fixed_dictionaries(
    {},
    optional={
        modality.name: json_values
        | st.lists(json_values, min_size=modality.width, max_size=modality.width)
        | st.fixed_dictionaries({}, optional={feature.name: json_values for feature in modality.features})
        for modality in SCHEMA.modalities
    },
)


@settings(deadline=None)
@given(json_values | junk)
def test_whatever_is_sent_is_encoded_or_refused(record: Any) -> None:
    """No JSON document ends in any other error than the one that lists its problems, and none lets infinity through."""
    try:
        encoded = SCHEMA.encode(record)
    except InvalidRecordError as error:
        messages = str(error)
    else:
        messages = "; ".join(encoded.warnings)
        assert not any(np.isinf(row).any() for row in encoded.arrays.values())
    assert "\n" not in messages


@given(st.text(max_size=10).filter(lambda name: name not in {"crea", "num.co"}))
def test_an_unknown_feature_is_named(name: str) -> None:
    """A key that the schema does not know is refused and named, so that a misspelling is found."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    assert problems(GOOD | {"labs": {name: 1.0}}) == {("labs", shown): "unknown_feature"}


def test_an_unknown_modality_is_named() -> None:
    """A modality the model does not have is refused, with those it has."""
    with pytest.raises(InvalidRecordError, match="lab: is not a modality of this model; expected labs, history, note, image"):
        SCHEMA.encode(GOOD | {"lab": {}})


def test_a_hostile_key_is_told_in_one_short_line() -> None:
    """Keys come from the caller: what is repeated of them is printable and short."""
    with pytest.raises(InvalidRecordError) as caught:
        SCHEMA.encode(GOOD | {"x\n" * 1000: {}, "labs": {"y\r\n" * 1000: 1, 7: 1}})
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_hostile_record_has_a_limited_number_of_problems() -> None:
    """However much is wrong with a record, the answer stays short."""
    assert len(problems(GOOD | {"labs": {f"x{i}": 1 for i in range(5000)}})) == MAX_PROBLEMS


def test_known_rows() -> None:
    """One record, encoded by hand."""
    encoded = SCHEMA.encode(GOOD)
    assert {name: row.tolist() for name, row in encoded.arrays.items()} == {
        "labs": [1.5, 2.0],
        "history": [1.0, 1.0, 0.0, 1.0],
        "note": [0.0, 1.0],
        "image": [0.0, 1.0, 2.0, 3.0],
    }
    assert (encoded.missing, encoded.warnings) == ((), ())


def test_missing_values_and_modalities_are_told() -> None:
    """A modality without any value is told once, else its features without a value; a hole in an array counts."""
    encoded = SCHEMA.encode({"labs": {"crea": None}, "history": {"dx": []}, "image": {"pixels": [0, 1, None, 3]}})
    assert encoded.missing == ("labs", "history.sex", "note", "image.pixels")


def test_remarkable_values_are_told_by_feature_name() -> None:
    """Warnings name modality and feature in both forms of a record."""
    unusual = {"labs": {"crea": 14.2}, "history": {"sex": "other", "dx": ["Z99"]}, "note": {"text": "hello"}}
    assert SCHEMA.encode(unusual).warnings == (
        "labs.crea 14.2 is outside the range seen in training (0.1 to 11.8)",
        "history.sex is a category not seen in training and is treated as missing",
        "history.dx 1 of 1 codes were not seen often enough in training and are ignored",
        "note.text holds no word seen in training",
    )
    assert SCHEMA.encode({"labs": [14.2, None]}).warnings == SCHEMA.encode({"labs": {"crea": 14.2}}).warnings


def test_training_limits_are_not_remarkable_in_either_form() -> None:
    """Ranges are compared before rounding to float32, so the largest value of training has no warning."""
    assert SCHEMA.encode({"labs": {"crea": 11.8, "num.co": 9}}).warnings == ()
    assert SCHEMA.encode({"labs": [11.8, 9]}).warnings == ()


@pytest.mark.parametrize("cell", [None, math.nan, " "], ids=["null", "nan", "blank"])
def test_a_missing_cell_of_a_flat_vector_is_missing(cell: Any) -> None:
    """The same values mean missing in both forms."""
    assert SCHEMA.encode({"labs": [cell, 2]}).missing == SCHEMA.encode({"labs": {"crea": cell, "num.co": 2}}).missing


def test_numbers_of_numpy_are_numbers() -> None:
    """A caller inside Python may hand over numpy scalars, as tables and arrays give them."""
    record = {
        "labs": {"crea": np.float32(np.nan), "num.co": np.int64(2)},
        "history": {"sex": np.str_("male")},
        "image": {"pixels": np.zeros((2, 2))},
    }
    encoded = SCHEMA.encode(record)
    assert encoded.missing == ("labs.crea", "history.dx", "note")
    assert SCHEMA.encode({"labs": [np.float64(1), np.int8(2)]}).arrays["labs"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"labs": {"crea": SENTINEL}}, {("labs", "crea"): "number_type"}),
        ({"labs": {"crea": "31415926"}}, {("labs", "crea"): "number_type"}),
        ({"labs": {"crea": True}}, {("labs", "crea"): "number_type"}),
        ({"labs": {"crea": [31415926]}}, {("labs", "crea"): "number_type"}),
        ({"labs": {"crea": math.inf}}, {("labs", "crea"): "finite_number"}),
        ({"labs": {"crea": 31415926 * 10**400}}, {("labs", "crea"): "finite_number"}),
        ({"labs": {"crea": 3.1415926e300}}, {("labs", "crea"): "finite_number"}),
        ({"labs": {"crea": SENTINEL, "num.co": SENTINEL}}, {("labs", "crea"): "number_type", ("labs", "num.co"): "number_type"}),
        ({"labs": SENTINEL}, {("labs",): "modality_type"}),
        ({"labs": 31415926}, {("labs",): "modality_type"}),
        ({"labs": True}, {("labs",): "modality_type"}),
        ({"labs": [31415926]}, {("labs",): "vector_length"}),
        ({"labs": []}, {("labs",): "vector_length"}),
        ({"labs": [SENTINEL, 1]}, {("labs", 0): "number_type"}),
        ({"labs": [31415926, True]}, {("labs", 1): "number_type"}),
        ({"labs": [[31415926], [1]]}, {("labs", 0): "number_type", ("labs", 1): "number_type"}),
        ({"labs": [math.inf, 3.1415926e300]}, {("labs", 0): "finite_number", ("labs", 1): "finite_number"}),
        ({"history": {"sex": [SENTINEL]}}, {("history", "sex"): "category_type"}),
        ({"history": {"dx": [31415926]}}, {("history", "dx"): "codes_type"}),
        ({"history": {"dx": 31415926}}, {("history", "dx"): "codes_type"}),
        ({"history": {"dx": {SENTINEL: 1}}}, {("history", "dx"): "codes_type"}),
        ({"history": [31415926, 0, 0, 0]}, {("history", 0): "category_position"}),
        ({"history": [0.31415926, 0, 0, 0]}, {("history", 0): "category_position"}),
        ({"history": [0, 0, 31415926, 0]}, {("history", 2): "code_flag"}),
        ({"note": {"text": 31415926}}, {("note", "text"): "string_type"}),
        ({"note": {"text": [SENTINEL]}}, {("note", "text"): "string_type"}),
        ({"image": {"pixels": [[31415926, 1]]}}, {("image", "pixels"): "array_shape"}),
        ({"image": {"pixels": [[SENTINEL, 1], [1, 1]]}}, {("image", "pixels"): "array_type"}),
        ({"image": {"pixels": [[31415926, 1], [1]]}}, {("image", "pixels"): "array_type"}),
        ({"image": {"pixels": SENTINEL}}, {("image", "pixels"): "array_type"}),
        ({"image": {"pixels": [3.1415926e300] * 4}}, {("image", "pixels"): "finite_number"}),
        ({"x": {}, "labs": {"y": 31415926}}, {("x",): "unknown_modality", ("labs", "y"): "unknown_feature"}),
    ],
)
def test_what_does_not_fit_is_named_and_not_repeated(part: dict[str, Any], expected: dict[Any, str]) -> None:
    """Every problem has its place and type, and no message holds the value that was sent."""
    assert problems(GOOD | part) == expected
    with pytest.raises(InvalidRecordError) as caught:
        SCHEMA.encode(GOOD | part)
    for problem in caught.value.problems:
        assert isinstance(problem, Problem)
        assert not any(digits in problem.msg for digits in (SENTINEL, "31415926", "3.1415926", "314159"))
        assert problem.msg.startswith(("must ", "is not "))


def test_all_problems_of_a_record_are_found_at_once() -> None:
    """A caller sees everything that is wrong, and required modalities are not hidden by other problems."""
    wrong = {"labs": {"crea": "x"}, "history": {"sex": []}, "image": {}}
    assert problems(wrong) == {("labs", "crea"): "number_type", ("history", "sex"): "category_type"}
    assert problems(wrong, NEEDY) == problems(wrong) | {("note",): "missing", ("image",): "missing"}


@pytest.mark.parametrize("record", [{}, {"id": "x"}, {"labs": {}}, {"labs": None, "note": {"text": " "}}], ids=str)
def test_a_record_without_any_value_is_refused(record: dict[str, Any]) -> None:
    """Nothing at all is no patient: one problem for the record, or one per modality where each is required."""
    assert problems(record) == {(): "missing"}
    assert problems(record, NEEDY) == {(name,): "missing" for name in WIDTHS}


def test_a_model_without_missing_tokens_needs_every_modality() -> None:
    """With missing = "reject" a modality may have gaps but not be absent."""
    gappy = GOOD | {"labs": {"crea": 1}, "history": {"dx": []}}
    assert NEEDY.encode(gappy).missing == ("labs.num.co", "history.sex")
    assert problems(GOOD | {"labs": {"crea": None}}, NEEDY) == {("labs",): "missing"}
    assert problems(GOOD | {"history": {"sex": "other"}}, NEEDY) == {("history",): "missing"}


@pytest.mark.parametrize("record", [None, [], "x", 7], ids=str)
def test_what_is_no_record_is_refused(record: Any) -> None:
    """Anything but an object of modalities is refused in the same way as a bad record."""
    assert problems(record) == {(): "record_type"}


def test_encoding_keeps_the_record() -> None:
    """The caller's record is not changed."""
    before = json.dumps(GOOD)
    SCHEMA.encode(GOOD)
    assert before == json.dumps(GOOD)


def test_a_large_flat_image_is_read_at_once() -> None:
    """A flat vector of an image is as good as its nested lists."""
    schema = FeatureSchema(modalities=(Modality(name="image", features=(ArrayFeature(name="p", shape=(3, 224, 224)),)),))
    pixels = np.random.default_rng(0).random((3, 224, 224)).astype(np.float32)
    flat, nested = pixels.reshape(-1).tolist(), pixels.tolist()
    np.testing.assert_array_equal(schema.encode({"image": flat}).arrays["image"], pixels.reshape(-1))
    np.testing.assert_array_equal(schema.encode({"image": {"p": nested}}).arrays["image"], pixels.reshape(-1))


def test_columns_tell_which_feature_fills_them() -> None:
    """Columns follow the features' order and widths."""
    history = SCHEMA.modalities[1]
    assert [(feature.name, columns) for feature, columns in history.columns()] == [("sex", slice(0, 1)), ("dx", slice(1, 4))]
    assert history.column_owners == ["sex", "dx", "dx", "dx"]
    assert history.by_name["dx"] == (history.features[1], slice(1, 4))
    assert SCHEMA.names == tuple(WIDTHS)


X = NumericFeature(name="x", minimum=0, maximum=1)


@pytest.mark.parametrize("name", ["", "1st", "a b", "a.b", "labs\n", "\u00e9"])
def test_modality_names_are_graph_names(name: str) -> None:
    """A modality's name is an input of the graph: a letter, then letters, digits and underscores."""
    with pytest.raises(ValidationError):
        Modality(name=name, features=(X,))


@pytest.mark.parametrize(
    ("names", "features", "words"),
    [
        (["labs", "labs"], (X,), "must be distinct"),
        (["id"], (X,), "not 'id'"),
        ([], (X,), "at least 1"),
        (["labs"], (X, X), r"names a feature twice: \['x'\]"),
        (["labs"], (), "at least 1"),
    ],
    ids=["twice", "id", "none", "feature twice", "no feature"],
)
def test_an_ambiguous_schema_is_refused(names: list[str], features: tuple[Feature, ...], words: str) -> None:
    """Names within a schema are distinct, and `id` is the record's own."""
    with pytest.raises(ValidationError, match=words):
        FeatureSchema(modalities=tuple(Modality(name=name, features=features) for name in names))


def test_schemas_compare_equal_after_use() -> None:
    """A schema with text that has encoded a record equals the same schema that has not."""
    text = {"kind": "text", "name": "note", "vocabulary": ["sepsis"], "idf": [1.5]}
    document = {"modalities": [{"name": "notes", "features": [text]}]}
    used, fresh = FeatureSchema.model_validate(document), FeatureSchema.model_validate(document)
    used.encode({"notes": {"note": "sepsis"}})
    assert used == fresh
