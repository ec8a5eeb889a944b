"""One raw value at a time: what every kind of feature accepts, answers and refuses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.features import (
    ArrayFeature,
    BaseFeature,
    CategoricalFeature,
    CodesFeature,
    NumericFeature,
    TextFeature,
    UnfitValueError,
    category_text,
    is_missing,
    kind_of,
    read_number,
    read_numbers,
    split_codes,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)


def refusal(action, *arguments: object) -> UnfitValueError:
    """The refusal that an action ends in."""
    with pytest.raises(UnfitValueError) as caught:
        action(*arguments)
    return caught.value


@pytest.mark.parametrize("value", [None, math.nan, "", "  \t"])
def test_nothing_nan_and_blank_strings_are_missing(value: object) -> None:
    """None, NaN and blank strings mean: not measured."""
    assert is_missing(value)


@pytest.mark.parametrize("value", [0, 0.0, False, "0", [], {}, math.inf], ids=repr)
def test_zero_and_empty_collections_are_not_missing(value: object) -> None:
    """Zero, false, an empty list and infinity are values, good or bad."""
    assert not is_missing(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [("x", "a string"), (True, "a boolean"), ([], "a list"), ((), "a list"), ({}, "an object"), (None, "null"), (1, "a number")],
)
def test_kinds_are_named_without_the_value(value: object, words: str) -> None:
    """A value's kind is told in words."""
    assert words == kind_of(value)
    assert kind_of(b"x") == "a bytes"


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.float64(3), np.int64(3), np.uint8(3)], ids=repr)
def test_numbers_of_python_and_numpy_are_read(value: object) -> None:
    """Every number type of Python and numpy becomes a float."""
    number = read_number(value)
    assert number == 3.0
    assert type(number) is float


@pytest.mark.parametrize("value", ["3", True, np.bool_(True), [3], {}, b"3", 3j], ids=repr)
def test_what_is_no_number_is_refused(value: object) -> None:
    """Numeric strings, booleans and collections are no numbers."""
    assert refusal(read_number, value).type == "number_type"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39, -1e39, 10**400, FLOAT32_MAX * 1.0001])
def test_numbers_beyond_float32_are_refused(value: object) -> None:
    """Infinity, NaN and what float32 cannot hold are refused, whatever their number of digits."""
    assert refusal(read_number, value).type == "finite_number"


@given(st.floats(min_value=-FLOAT32_MAX, max_value=FLOAT32_MAX))
def test_every_number_that_float32_holds_is_read(value: float) -> None:
    """Every finite number within float32's range is accepted and stays finite as float32."""
    assert np.isfinite(np.float32(read_number(value)))


@pytest.mark.parametrize(
    ("spellings", "text"),
    [
        ((0, 0.0, -0.0, "0", "0.0", " 0 "), "0"),
        ((1, 1.0, "1", "1.0", np.float64(1)), "1"),
        ((-3, -3.0, "-3", "-3.0"), "-3"),
        ((True, "true", "True", "TRUE"), "true"),
        ((False, "false", "False"), "false"),
        ((0.5, "0.5"), "0.5"),
        (("007",), "007"),
        (("007.0",), "007.0"),
        (("250.00",), "250.00"),
        (("1.0.0",), "1.0.0"),
        (("Truely",), "Truely"),
        ((math.inf,), "inf"),
    ],
)
def test_spellings_of_one_category_are_one(spellings: tuple[object, ...], text: str) -> None:
    """Numbers, their texts and booleans meet in one spelling; other text, leading zeros included, stays as it is."""
    assert {text} == {category_text(value) for value in spellings}


@given(st.one_of(st.integers(-(10**18), 10**18), st.floats(-1e15, 1e15), st.text(max_size=8), st.booleans()))
def test_a_category_spelling_is_stable(value: object) -> None:
    """Spelling a category twice changes nothing, so a vocabulary may be read back as categories."""
    text = category_text(value)
    assert text == category_text(text)


@given(st.integers(-(10**15), 10**15))
def test_a_whole_number_is_one_category_however_it_was_stored(value: int) -> None:
    """An integer, its float and what pandas writes to csv for either are one category."""
    assert category_text(value) == category_text(float(value)) == category_text(f"{value}.0" if value else "0.0")


@pytest.mark.parametrize("value", [[], {}, b"x", pytest.param(10**5000, id="long"), object()])
def test_what_is_no_category_is_refused(value: object) -> None:
    """Collections, bytes and numbers too long to spell are no categories."""
    assert refusal(category_text, value).type == "category_type"


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        ("007|I10|007", ["007", "I10"]),
        ("", []),
        ([], []),
        (" 0010 ||", ["0010"]),
        ([" I10", "0010"], ["I10", "0010"]),
        (("A|B",), ["A|B"]),
    ],
)
def test_codes_are_distinct_text(value: object, codes: list[str]) -> None:
    """Codes come as one string or a list, are trimmed and distinct, and keep leading zeros."""
    assert codes == split_codes(value, "|")


@pytest.mark.parametrize("value", [7, 7.5, {"I10": 1}, [401, "I10"], ["I10", None], [["I10"]]])
def test_what_is_no_list_of_codes_is_refused(value: object) -> None:
    """Numbers are no codes, because a number has lost its leading zeros."""
    assert refusal(split_codes, value, "|").type == "codes_type"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[1, 2], [3, 4.5]], [[1, 2], [3, 4.5]]),
        ([1, None], [1, math.nan]),
        ((1, math.nan), [1, math.nan]),
        (np.array([1, 2], np.int16), [1, 2]),
        ([np.float32(1), np.int64(2)], [1, 2]),
        ([], []),
    ],
)
def test_arrays_of_numbers_are_read(value: object, expected: object) -> None:
    """Nested lists, tuples and numpy arrays of numbers are read, null as NaN."""
    np.testing.assert_array_equal(read_numbers(value), np.asarray(expected, np.float64))


@pytest.mark.parametrize(
    "value",
    [
        [1, "2"],
        ["1", "2"],
        [True, 2.0],
        [[1, 2], [3]],
        [1, [2]],
        {"a": 1},
        "12",
        [{}],
        np.array(["1"]),
        np.array([True]),
        [1j],
    ],
)
def test_arrays_of_other_things_are_refused(value: object) -> None:
    """Strings, booleans (among numbers too), objects and ragged lists are no arrays of numbers."""
    assert refusal(read_numbers, value).type == "array_type"


@pytest.mark.parametrize("value", [[math.inf], [1, -math.inf], [1e39], [10**400], np.array([np.inf], np.float32)])
def test_arrays_beyond_float32_are_refused(value: object) -> None:
    """Infinity and what float32 cannot hold are refused, without a numpy warning."""
    assert refusal(read_numbers, value).type == "finite_number"


def test_deep_nesting_is_refused() -> None:
    """Lists nested as deep as an array can be have the wrong shape; deeper ones are no array."""
    deep: object = 1.0
    for _ in range(60):
        deep = [deep]
    assert refusal(IMAGE.encode, deep).type == "array_shape"
    for _ in range(200):
        deep = [deep]
    assert refusal(IMAGE.encode, deep).type == "array_type"


CREA = NumericFeature(name="crea", minimum=0.1, maximum=11.8)
SEX = CategoricalFeature(name="sex", vocabulary=("female", "male"))
DX = CodesFeature(name="dx", vocabulary=("0010", "I10", "E11"))
NOTE = TextFeature(name="note", vocabulary=("fever", "pain"), idf=(1.0, 2.0))
IMAGE = ArrayFeature(name="image", shape=(2, 3))


@pytest.mark.parametrize("value", [0.1, 11.8, 5])
def test_a_number_within_the_training_range_has_no_warning(value: float) -> None:
    """The limits themselves were seen in training."""
    assert CREA.encode(value) == (value, None)


@pytest.mark.parametrize(("value", "told"), [(14.2, "14.2"), (0.09, "0.09"), (-1, "-1"), (1e30, "1e+30")])
def test_a_number_outside_the_training_range_is_kept_with_a_warning(value: float, told: str) -> None:
    """An unusual number is used as it is, and the warning says what was usual."""
    assert CREA.encode(value) == (value, f"{told} is outside the range seen in training (0.1 to 11.8)")


def test_a_known_category_is_its_position() -> None:
    """A category becomes its position in the vocabulary, however it is spelt."""
    assert SEX.encode("male") == (1.0, None)
    assert SEX.encode(" female ") == (0.0, None)
    assert CategoricalFeature(name="n", vocabulary=("0", "1")).encode(1.0) == (1.0, None)


def test_an_unknown_category_is_missing_with_a_warning() -> None:
    """A category never seen in training is missing, and the warning does not repeat it."""
    value, warning = SEX.encode("other")
    assert math.isnan(value)
    assert warning == "is a category not seen in training and is treated as missing"


def test_codes_set_their_columns() -> None:
    """Known codes are ones, unknown ones are counted in a warning, no code at all is a row of zeros."""
    columns, warning = DX.encode("I10|Z99|0010|Z98")
    np.testing.assert_array_equal(columns, [1, 1, 0])
    assert warning == "2 of 4 codes were not seen often enough in training and are ignored"
    columns, warning = DX.encode([])
    np.testing.assert_array_equal(columns, [0, 0, 0])
    assert warning is None


def test_a_code_without_its_leading_zeros_is_another_code() -> None:
    """ "10" is not "0010"."""
    columns, warning = DX.encode("10")
    assert not columns.any()
    assert warning is not None


def test_text_without_a_known_word_has_a_warning() -> None:
    """Text becomes its tf-idf vector; where no word is known that is said."""
    columns, warning = NOTE.encode("Pain, pain and fever")
    np.testing.assert_allclose(columns, np.array([1.0, 4.0]) / math.sqrt(17), rtol=1e-6)
    assert warning is None
    assert NOTE.encode("nothing")[1] == "holds no word seen in training"
    assert refusal(NOTE.encode, 7).type == "string_type"


@pytest.mark.parametrize("value", [[[1, 2, 3], [4, None, 6]], [1, 2, 3, 4, None, 6]])
def test_an_array_comes_nested_or_flat(value: object) -> None:
    """Nested and flat lists are the same row-major columns; a null cell is NaN."""
    columns, warning = IMAGE.encode(value)
    np.testing.assert_array_equal(columns, np.array([1, 2, 3, 4, np.nan, 6], np.float32))
    assert columns.dtype == np.float32
    assert warning is None


@pytest.mark.parametrize("value", [[], [1, 2], [[1, 2], [3, 4], [5, 6]], 3.0, [[[1, 2, 3], [4, 5, 6]]]])
def test_an_array_of_another_shape_is_refused(value: object) -> None:
    """The message tells the expected shape and the one found."""
    error = refusal(IMAGE.encode, value)
    assert error.type == "array_shape"
    assert f"must have shape [2, 3], found {list(np.shape(value))}" == str(error)


@pytest.mark.parametrize(("number", "good"), [(0, True), (1, True), (math.nan, True), (2, False), (-1, False), (0.5, False)])
def test_a_category_cell_is_a_position(number: float, good: bool) -> None:
    """In a flat vector a category is its position in the vocabulary, and nothing else."""
    if good:
        assert SEX.check_cells([float(number)]) is None
    else:
        assert refusal(SEX.check_cells, [float(number)]).type == "category_position"


def test_a_code_cell_is_zero_or_one() -> None:
    """In a flat vector a code is 0 or 1; the refusal points at the cell."""
    assert DX.check_cells([0.0, 1.0, math.nan]) is None
    error = refusal(DX.check_cells, [0.0, 7.0, 1.0])
    assert (error.type, error.offset) == ("code_flag", 1)
    assert str(error) == "must be 0 or 1: is I10 one of dx?"


def test_text_and_array_cells_are_any_number() -> None:
    """In a flat vector text and arrays hold what their encoder or sensor gave."""
    assert NOTE.check_cells([0.3, 0.7]) is None
    assert IMAGE.check_cells([0.0] * 6) is None


def test_a_number_cell_warns_as_the_named_form_does() -> None:
    """Ranges are checked in a flat vector too, unless the number is missing."""
    assert CREA.check_cells([14.2]) == CREA.encode(14.2)[1]
    assert CREA.check_cells([math.nan]) is None


@pytest.mark.parametrize(
    ("feature", "fields", "words"),
    [
        (NumericFeature, {"minimum": 2.0, "maximum": 1.0}, "expected minimum <= maximum, found 2 and 1"),
        (NumericFeature, {"minimum": math.nan, "maximum": 1.0}, "finite"),
        (CategoricalFeature, {"vocabulary": ["a", "b", "a"]}, "1 of 3 repeated"),
        (CategoricalFeature, {"vocabulary": []}, "at least 1"),
        (CodesFeature, {"vocabulary": ["a"], "separator": ""}, "at least 1"),
        (TextFeature, {"vocabulary": ["a", "b"], "idf": [1.0]}, "idf has 1 entries, vocabulary 2"),
        (ArrayFeature, {"shape": [2, 0]}, "greater than 0"),
        (ArrayFeature, {"shape": []}, "at least 1"),
    ],
)
def test_a_feature_that_makes_no_sense_is_refused(feature: type[BaseFeature], fields: dict[str, object], words: str) -> None:
    """A schema cannot be built from contradictory features."""
    with pytest.raises(ValidationError, match=words):
        feature.model_validate({"name": "x", **fields})
    with pytest.raises(ValidationError, match="name"):
        feature.model_validate({"name": "", **fields})


ICD = CodesFeature(name="dx", vocabulary=("chapter:circulatory", "icd10:I50", "icd9:428"), grouping="icd")


def test_grouped_codes_are_ones_at_their_groups() -> None:
    """A client sends whole codes of either edition."""
    columns, warning = ICD.encode(["icd10:I50.9", "icd9:428.0"])
    assert (columns.tolist(), warning) == ([1, 1, 1], None)
    columns, warning = ICD.encode("icd10:I10|icd10:E11.9")
    assert columns.tolist() == [1, 0, 0]
    assert warning == "1 of 2 codes were not seen often enough in training and are ignored"


def test_a_grouped_code_without_its_edition_is_refused_and_not_repeated() -> None:
    """The codes of a patient are theirs."""
    with pytest.raises(UnfitValueError, match="must say its edition") as caught:
        ICD.encode(["I50.9"])
    assert "I50.9" not in str(caught.value).replace("icd10:I50.9", "")
