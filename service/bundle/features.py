"""The kinds of features: how one raw value becomes one or more columns, and which values are refused.

Knows nothing of modalities or records: `service.bundle.schema` adds the place to every problem found here.
"""

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from service.bundle.errors import InferenceError
from service.bundle.icd import icd_groups
from service.bundle.text import tfidf_vector

FloatArray = NDArray[np.float32]
Encoded = tuple[float | FloatArray, str | None]  # what goes into the columns, and a warning
_PLAIN_NUMBERS = {float, int}
MAX_TOKENS = 1 << 16  # of a text encoder's chunk: the longest is read whole before a bundle is served
FLOAT32_MAX = float(np.finfo(np.float32).max)
_KIND_NAMES = {str: "a string", bool: "a boolean", list: "a list", tuple: "a list", dict: "an object", NoneType: "null"}
# Whole numbers as pandas and spreadsheets write them when a column has gaps.
_WHOLE_NUMBER_AS_FLOAT = re.compile(r"(0|-?[1-9][0-9]*)\.0")


class Frozen(BaseModel):
    """A part of the manifest, the schema included: unchangeable, and strict about what it is built from."""

    # No NaN: JSON has none, so a manifest that holds one would be written and never opened again.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class UnfitValueError(ValueError):
    """A value that does not fit its feature; the caller adds the place. Never holds the value.

    `offset` is the cell at fault within the feature's columns of a flat vector.
    """

    def __init__(self, type_: str, msg: str, *, offset: int = 0) -> None:
        self.type = type_
        self.offset = offset
        super().__init__(msg)


def kind_of(value: object) -> str:
    """What a value is, in words that do not repeat it."""
    return _KIND_NAMES.get(type(value)) or ("a number" if _is_number_type(type(value)) else f"a {type(value).__name__}")


def _is_number_type(type_: type) -> bool:
    return issubclass(type_, int | float | np.integer | np.floating) and type_ is not bool


def is_missing(value: object) -> bool:
    """None, NaN and blank strings mean: not measured."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def read_number(value: object) -> float:
    """A finite number that float32 can hold; anything else is refused (booleans and numeric strings too)."""
    if type(value) is not float and not _is_number_type(type(value)):
        raise UnfitValueError("number_type", f"must be a number, found {kind_of(value)}")
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # type: ignore[operator]  # a number type, as just checked
        raise UnfitValueError("finite_number", "must be a finite number within the range of 32-bit floats")
    return float(value)  # type: ignore[arg-type]


def read_numbers(value: object) -> NDArray[np.float64]:
    """Numbers in (nested) lists or an array, null as NaN; strings, booleans, infinity and ragged lists are refused."""
    if isinstance(value, list) and set(map(type, value)) <= _PLAIN_NUMBERS:
        return _within_float32(_as_float64(value))
    array = value if isinstance(value, np.ndarray) else np.asarray(value, object)
    if array.dtype.kind not in "Oiuf":
        raise UnfitValueError("array_type", f"must hold numbers, found {array.dtype}")
    cell_types = set(map(type, array.ravel().tolist())) if array.dtype.kind == "O" else ()
    if not all(t is NoneType or _is_number_type(t) for t in cell_types):
        raise UnfitValueError("array_type", "must hold numbers in lists of equal length")
    return _within_float32(_as_float64(array))


def _as_float64(numbers: list[float] | NDArray[Any]) -> NDArray[np.float64]:
    try:
        return np.asarray(numbers, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return np.full(np.shape(numbers), np.inf)


def _within_float32(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    if (np.abs(numbers) > FLOAT32_MAX).any():
        raise UnfitValueError("finite_number", "must hold finite numbers within the range of 32-bit floats")
    return numbers


def category_text(value: object) -> str:
    """The spelling under which a category is kept.

    One category are: 0, 0.0, "0" and "0.0"; True, "true" and "TRUE". Other text stays as it is, leading zeros included.
    """
    if not isinstance(value, str | int | float):
        raise UnfitValueError("category_type", f"must be a category (a string, number or boolean), found {kind_of(value)}")
    try:
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    except ValueError:  # Python spells no whole number of thousands of digits
        raise UnfitValueError("category_type", "must be a category, found a number too long to be one") from None
    if text.lower() in {"true", "false"}:
        return text.lower()
    return text[:-2] if _WHOLE_NUMBER_AS_FLOAT.fullmatch(text) else text


def split_codes(value: object, separator: str) -> list[str]:
    """The distinct codes of a value, in order; codes are text, so leading zeros stay."""
    if isinstance(value, str):
        value = value.split(separator)
    if not isinstance(value, list | tuple):
        raise UnfitValueError("codes_type", f"must be a list of strings or one string, found {kind_of(value)}")
    if others := [code for code in value if not isinstance(code, str)]:
        raise UnfitValueError("codes_type", f"must be a list of strings, found {kind_of(others[0])} among them")
    return list(dict.fromkeys(code.strip() for code in value if code.strip()))


def code_groups(code: str) -> tuple[str, ...]:
    """The groups that a diagnosis code is in. Raises `UnfitValueError`."""
    try:
        return icd_groups(code)
    except ValueError as error:
        raise UnfitValueError("icd_code", f"{error}, in every code") from None


def _check_distinct(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) != len(words):
        raise ValueError(f"expected distinct entries, found {len(words) - len(set(words))} of {len(words)} repeated")
    return words


LoincCode = Annotated[str, Field(pattern=r"^[0-9]{1,8}-[0-9]$")]
Summary = Literal["last", "first", "minimum", "maximum", "mean", "count"]
Grouping = Literal["icd"]
Pooling = Literal["mean", "cls", "graph"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Vocabulary = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_distinct)]


class BaseFeature(Frozen):
    """What every kind of feature can do."""

    name: str = Field(min_length=1)
    loinc: tuple[LoincCode, ...] = ()  # what a hospital system calls it; any of them will do, the first is the closest

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of columns."""

    @abstractmethod
    def encode(self, value: object) -> Encoded:
        """What a value that is not missing puts into the columns. Raises `UnfitValueError`."""

    def check_cells(self, cells: Sequence[float]) -> str | None:
        """Check this feature's finite numbers (NaN where missing) of a flat vector; answer a warning as `encode` does."""
        del cells
        return None

    @property
    def may_refuse(self) -> bool:
        """Whether `check_cells` may refuse a finite number."""
        return self.has_rules

    @property
    def has_rules(self) -> bool:
        """Whether `check_cells` may have something to say."""
        return type(self).check_cells is not BaseFeature.check_cells


class NumericFeature(BaseFeature):
    """A measured number: one column. Warns when it lies outside the range seen in training.

    Where a patient has several measurements, `summary` says what of those in the last `lookback_hours` before the prediction
    (None: all of them) is the number.
    """

    kind: Literal["numeric"] = "numeric"
    unit: str | None = None  # UCUM
    summary: Summary = "last"
    lookback_hours: PositiveFloat | None = None
    minimum: float  # smallest value seen in training
    maximum: float  # largest value seen in training

    @model_validator(mode="after")
    def _range_is_one(self) -> "NumericFeature":
        if self.minimum > self.maximum:
            raise ValueError(f"expected minimum <= maximum, found {self.minimum:g} and {self.maximum:g}")
        return self

    @property
    def width(self) -> int:
        """One column."""
        return 1

    @property
    def may_refuse(self) -> bool:
        """A measured number is at most remarkable."""
        return False

    def encode(self, value: object) -> Encoded:
        """The number itself."""
        number = read_number(value)
        return number, None if self.minimum <= number <= self.maximum else self.check_cells((number,))

    def check_cells(self, cells: Sequence[float]) -> str | None:
        """Warn about a number outside the range seen in training."""
        number = cells[0]
        if math.isnan(number) or self.minimum <= number <= self.maximum:
            return None
        return f"{number:g} is outside the range seen in training ({self.minimum:g} to {self.maximum:g})"


class VocabularyFeature(BaseFeature):
    """A feature whose values are words of a fixed list."""

    vocabulary: Vocabulary

    @property
    def width(self) -> int:
        """One column per entry of the vocabulary."""
        return len(self.vocabulary)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Entry to its position in the vocabulary."""
        return {word: i for i, word in enumerate(self.vocabulary)}


class CategoricalFeature(VocabularyFeature):
    """One of a fixed list of categories: one column holding the position in `vocabulary`."""

    kind: Literal["categorical"] = "categorical"

    @property
    def width(self) -> int:
        """One column."""
        return 1

    def encode(self, value: object) -> Encoded:
        """The category's position; a category never seen in training counts as missing, with a warning."""
        position = self.positions.get(value) if isinstance(value, str) else None
        if position is None:
            position = self.positions.get(category_text(value))
        if position is None:
            return math.nan, "is a category not seen in training and is treated as missing"
        return float(position), None

    def check_cells(self, cells: Sequence[float]) -> str | None:
        """Refuse a number that is no position in the vocabulary."""
        number, last = cells[0], len(self.vocabulary) - 1
        if not (math.isnan(number) or (number.is_integer() and 0 <= number <= last)):
            raise UnfitValueError("category_position", f"must be a position in the vocabulary of {self.name}, 0 to {last}")
        return None


class CodesFeature(VocabularyFeature):
    """A set of codes (ICD, drugs): one 0/1 column per vocabulary entry.

    With `grouping` the vocabulary holds groups, and a code stands for every group that it is in (`service.bundle.icd`).
    """

    kind: Literal["codes"] = "codes"
    separator: str = Field(default="|", min_length=1)
    grouping: Grouping | None = None

    def encode(self, value: object) -> Encoded:
        """Ones at the codes, or their groups, of a list or of one string joined by `separator`."""
        codes = split_codes(value, self.separator)
        known = [self._known(code) for code in codes]
        columns = np.zeros(self.width, np.float32)
        columns[[position for positions in known for position in positions]] = 1.0
        num_unknown = sum(not positions for positions in known)
        if num_unknown == 0:
            return columns, None
        return columns, f"{num_unknown} of {len(codes)} codes were not seen often enough in training and are ignored"

    def _known(self, code: str) -> list[int]:
        words = (code,) if self.grouping is None else code_groups(code)
        return [self.positions[word] for word in words if word in self.positions]

    def check_cells(self, cells: Sequence[float]) -> str | None:
        """Refuse a number that is neither 0 nor 1."""
        for offset, cell in enumerate(cells):
            if cell not in {0.0, 1.0} and not math.isnan(cell):
                msg = f"must be 0 or 1: is {self.vocabulary[offset]} one of {self.name}?"
                raise UnfitValueError("code_flag", msg, offset=offset)
        return None


class TextFeature(VocabularyFeature):
    """Free text as a tf-idf vector: one column per vocabulary word."""

    kind: Literal["text"] = "text"
    encoder: Literal["tfidf"] = "tfidf"
    idf: tuple[float, ...]

    @model_validator(mode="after")
    def _idf_matches(self) -> "TextFeature":
        if len(self.idf) != len(self.vocabulary):
            raise ValueError(f"idf has {len(self.idf)} entries, vocabulary {len(self.vocabulary)}")
        return self

    def encode(self, value: object) -> Encoded:
        """The tf-idf vector of a string."""
        if not isinstance(value, str):
            raise UnfitValueError("string_type", f"must be a string, found {kind_of(value)}")
        columns = tfidf_vector(value, self.positions, self.idf)
        return columns, None if columns.any() else "holds no word seen in training"


class TextReading(NamedTuple):
    """What an encoder makes of one text."""

    vector: FloatArray | None  # (dimension,); None where the text holds no token
    num_read: int  # tokens that the vector is made of
    num_tokens: int  # tokens of the whole text


class Embedder(Protocol):
    """Embeds texts: `service.bundle.embedding`, which alone knows how."""

    def embed(self, text: str, feature: "EmbeddedTextFeature", /) -> TextReading:
        """Read a text as the feature says. Raises `InferenceError`."""


class EmbeddedTextFeature(BaseFeature):
    """Free text as a sentence embedding: one column per dimension.

    Names its encoder by the sha256 of graph and tokenizer. The schema holds no files: whoever opens one gives it the encoder
    (`FeatureSchema.with_encoders`), without which it encodes nothing.
    """

    kind: Literal["embedded_text"] = "embedded_text"
    graph_sha256: Sha256
    tokenizer_sha256: Sha256
    dimension: PositiveInt
    pooling: Pooling = "mean"  # of token vectors: their mean, the first, or as the graph itself does
    normalise: bool = True  # to a Euclidean norm of 1
    max_tokens: int = Field(ge=1, le=MAX_TOKENS)  # that the graph reads at once, special ones included
    max_chunks: PositiveInt  # of so many tokens; what is beyond them is not read
    _encoder: Embedder | None = PrivateAttr(default=None)

    @property
    def width(self) -> int:
        """One column per dimension."""
        return self.dimension

    @property
    def encoder(self) -> Embedder:
        """What embeds its texts."""
        assert self._encoder is not None, f"{self.name}: the schema was never given its text encoders"
        return self._encoder

    def with_encoder(self, encoder: Embedder) -> "EmbeddedTextFeature":
        """The same feature, able to encode."""
        feature = self.model_copy()
        feature._encoder = encoder
        return feature

    def encode(self, value: object) -> Encoded:
        """The embedding of a string; warns when the text is longer than what is read of it."""
        if not isinstance(value, str):
            raise UnfitValueError("string_type", f"must be a string, found {kind_of(value)}")
        try:
            reading = self.encoder.embed(value, self)
        except InferenceError as error:
            raise UnfitValueError("text_encoder", f"cannot be embedded: {error}") from None
        if reading.vector is None:
            return np.full(self.width, np.nan, np.float32), "holds nothing that the text encoder knows and is treated as missing"
        if reading.num_read < reading.num_tokens:
            return reading.vector, f"is too long: its first {reading.num_read} of {reading.num_tokens} tokens were read"
        return reading.vector, None


class ArrayFeature(BaseFeature):
    """A numeric array of fixed shape (an image, a signal, an embedding), flattened row-major into columns."""

    kind: Literal["array"] = "array"
    shape: tuple[PositiveInt, ...] = Field(min_length=1)

    @property
    def width(self) -> int:
        """One column per cell."""
        return math.prod(self.shape)

    def encode(self, value: object) -> Encoded:
        """The cells of nested lists of `shape`, or of the flat list; null cells are missing."""
        array = read_numbers(value)
        if array.shape not in {self.shape, (self.width,)}:
            raise UnfitValueError("array_shape", f"must have shape {list(self.shape)}, found {list(array.shape)}")
        return array.reshape(-1).astype(np.float32), None


Feature = Annotated[
    NumericFeature | CategoricalFeature | CodesFeature | TextFeature | EmbeddedTextFeature | ArrayFeature,
    Field(discriminator="kind"),
]
