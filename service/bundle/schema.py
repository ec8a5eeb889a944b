"""The feature schema: what a record may hold, and how it becomes the arrays the graph reads.

Training fits a schema and encodes its tables with it; the service loads the same schema from the manifest and encodes
requests with it. There is no second way from a record to an array. No torch, no web framework, no files here.

A record is a mapping of modality name to either named features (``{"labs": {"crea": 1.4}}``) or the modality's flat
vector (``{"labs": [1.4, null, ...]}``, one entry per column, category features as their position in the vocabulary).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle.errors import InvalidRecordError, Problem
from service.bundle.text import tfidf_vector

FloatArray = NDArray[np.float32]
_NAN = np.float32(np.nan)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class _ValueError(ValueError):
    """A value that does not fit its feature; the caller adds the place. Never holds the value."""

    def __init__(self, type_: str, msg: str) -> None:
        self.type = type_
        super().__init__(msg)


def _kind_of(value: object) -> str:
    names = {str: "a string", bool: "a boolean", list: "a list", tuple: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _number(value: object) -> float:
    """A finite number that float32 can hold; anything else is refused (booleans and numeric strings too)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _ValueError("number_type", f"must be a number, found {_kind_of(value)}")
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        raise _ValueError("finite_number", "must be a finite number within the range of 32-bit floats")
    return float(value)


def category_text(value: object) -> str:
    """The spelling under which a category is kept: 0, 0.0 and "0" are one category, so are True and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise _ValueError("category_type", f"must be a category (a string, number or boolean), found {_kind_of(value)}")


def is_missing(value: object) -> bool:
    """None, NaN and blank strings mean: not measured."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())


class NumericFeature(_Frozen):
    """A measured number: one column."""

    kind: Literal["numeric"] = "numeric"
    name: str
    unit: str | None = None
    minimum: float  # smallest value seen in training
    maximum: float  # largest value seen in training

    @property
    def width(self) -> int:
        """Number of columns."""
        return 1

    def encode(self, value: object, column: FloatArray) -> str | None:
        """Write into `column` (1,); answer a warning when the value lies outside the range seen in training."""
        column[0] = number = _number(value)
        if self.minimum <= number <= self.maximum:
            return None
        return f"{number:g} is outside the range seen in training ({self.minimum:g} to {self.maximum:g})"


class CategoricalFeature(_Frozen):
    """One of a fixed list of categories: one column holding the position in `vocabulary`."""

    kind: Literal["categorical"] = "categorical"
    name: str
    vocabulary: tuple[str, ...] = Field(min_length=1)

    @property
    def width(self) -> int:
        """Number of columns."""
        return 1

    @cached_property
    def positions(self) -> dict[str, int]:
        """Category to position."""
        return {word: i for i, word in enumerate(self.vocabulary)}

    def encode(self, value: object, column: FloatArray) -> str | None:
        """Write into `column` (1,); a category never seen in training counts as missing, with a warning."""
        position = self.positions.get(category_text(value))
        if position is None:
            return "is a category not seen in training and is treated as missing"
        column[0] = position
        return None


class CodesFeature(_Frozen):
    """A set of codes (ICD, drugs): one 0/1 column per vocabulary entry."""

    kind: Literal["codes"] = "codes"
    name: str
    vocabulary: tuple[str, ...] = Field(min_length=1)
    separator: str = "|"

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.vocabulary)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Code to column."""
        return {word: i for i, word in enumerate(self.vocabulary)}

    def encode(self, value: object, column: FloatArray) -> str | None:
        """Write into `column` (V,); accepts a list of codes or one string joined by `separator`."""
        codes = split_codes(value, self.separator)
        column[:] = 0.0
        known = [self.positions[code] for code in codes if code in self.positions]
        column[known] = 1.0
        if len(known) == len(codes):
            return None
        return f"{len(codes) - len(known)} of {len(codes)} codes were not seen often enough in training and are ignored"


def split_codes(value: object, separator: str) -> list[str]:
    """The distinct codes of a value, in order; codes are text, so leading zeros stay."""
    if isinstance(value, str):
        value = value.split(separator)
    if not isinstance(value, list | tuple) or not all(isinstance(code, str) for code in value):
        raise _ValueError(
            "codes_type", f"must be a list of strings or one string separated by {separator!r}, found {_kind_of(value)}"
        )
    return list(dict.fromkeys(code.strip() for code in value if code.strip()))


class TextFeature(_Frozen):
    """Free text as a tf-idf vector: one column per vocabulary word."""

    kind: Literal["text"] = "text"
    name: str
    encoder: Literal["tfidf"] = "tfidf"
    vocabulary: tuple[str, ...] = Field(min_length=1)
    idf: tuple[float, ...]

    @model_validator(mode="after")
    def _idf_matches(self) -> "TextFeature":
        if len(self.idf) != len(self.vocabulary):
            raise ValueError(f"idf has {len(self.idf)} entries, vocabulary {len(self.vocabulary)}")
        return self

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.vocabulary)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Word to column."""
        return {word: i for i, word in enumerate(self.vocabulary)}

    @cached_property
    def idf_array(self) -> FloatArray:
        """Inverse document frequencies (V,)."""
        return np.asarray(self.idf, np.float32)

    def encode(self, value: object, column: FloatArray) -> str | None:
        """Write into `column` (V,)."""
        if not isinstance(value, str):
            raise _ValueError("string_type", f"must be a string, found {_kind_of(value)}")
        column[:] = tfidf_vector(value, self.positions, self.idf_array)
        return None if column.any() else "holds no word seen in training"


class ArrayFeature(_Frozen):
    """A numeric array of fixed shape (an image, a signal, an embedding), flattened row-major into columns."""

    kind: Literal["array"] = "array"
    name: str
    shape: tuple[int, ...] = Field(min_length=1)

    @property
    def width(self) -> int:
        """Number of columns."""
        return math.prod(self.shape)

    def encode(self, value: object, column: FloatArray) -> str | None:
        """Write into `column` (prod(shape),); accepts nested lists of `shape` or the flat list."""
        try:
            array = _float_array(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise _ValueError("array_type", f"must be an array of numbers of shape {list(self.shape)}") from error
        if array.shape not in {self.shape, (self.width,)}:
            raise _ValueError("array_shape", f"must have shape {list(self.shape)}, found {list(array.shape)}")
        if np.isinf(array).any():
            raise _ValueError("finite_number", "must hold finite numbers")
        column[:] = array.reshape(-1)
        return None


def _float_array(value: object) -> FloatArray:
    """Nested lists of numbers as float32; null entries become NaN, strings and booleans are refused."""
    array = np.asarray(value)
    if array.dtype.kind == "O" and all(cell is None or type(cell) in {int, float} for cell in array.flat):
        array = array.astype(np.float32)
    if array.dtype.kind not in "iuf":
        raise ValueError("not numbers")
    return array.astype(np.float32)


Feature = Annotated[NumericFeature | CategoricalFeature | CodesFeature | TextFeature | ArrayFeature, Field(discriminator="kind")]


class Modality(_Frozen):
    """One named group of features: one encoder of the model, one input of the graph."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    features: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "Modality":
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError(f"modality {self.name} names a feature twice: {sorted(n for n in names if names.count(n) > 1)}")
        return self

    @cached_property
    def width(self) -> int:
        """Number of columns of this modality's graph input."""
        return sum(feature.width for feature in self.features)

    @cached_property
    def by_name(self) -> dict[str, tuple[Feature, slice]]:
        """Feature name to the feature and its columns, in schema order."""
        return {feature.name: (feature, columns) for feature, columns in self.columns()}

    def columns(self) -> Iterator[tuple[Feature, slice]]:
        """Each feature with the columns it fills."""
        start = 0
        for feature in self.features:
            yield feature, slice(start, start + feature.width)
            start += feature.width


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """One record, ready for the graph."""

    arrays: dict[str, FloatArray]  # modality -> (columns,), NaN where missing
    missing: tuple[str, ...]  # "labs" for a whole modality, else "labs.glucose"
    warnings: tuple[str, ...]  # sentences for the caller


class _Reader:
    """Encodes one record and gathers everything that is wrong or remarkable with it."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.missing: list[str] = []
        self.warnings: list[str] = []

    def guarded(self, loc: tuple[str | int, ...], write: Callable[[], str | None]) -> None:
        try:
            warning = write()
        except _ValueError as error:
            self.problems.append(Problem(loc, error.type, str(error)))
        else:
            if warning:
                self.warnings.append(f"{'.'.join(map(str, loc))} {warning}")

    def named(self, modality: Modality, values: Mapping[str, object], row: FloatArray) -> None:
        by_name = modality.by_name
        for name in values:
            if name not in by_name:
                self.problems.append(
                    Problem((modality.name, str(name)), "unknown_feature", f"is not a feature of {modality.name}")
                )
        for name, (feature, columns) in by_name.items():
            value = values.get(name)
            if is_missing(value):
                continue
            self.guarded((modality.name, name), partial(feature.encode, value, row[columns]))

    def flat(self, modality: Modality, values: Sequence[object], row: FloatArray) -> None:
        if len(values) != modality.width:
            msg = f"must have {modality.width} values, found {len(values)}"
            self.problems.append(Problem((modality.name,), "vector_length", msg))
            return
        for feature, columns in modality.columns():
            for position in range(columns.start, columns.stop):
                if values[position] is not None:
                    write = partial(_write_cell, feature, values[position], row[position : position + 1])
                    self.guarded((modality.name, position), write)


def _write_cell(feature: Feature, value: object, cell: FloatArray) -> str | None:
    """Write one number of a flat vector into its `cell` (1,); answer a warning as `encode` does."""
    if isinstance(feature, NumericFeature):
        return feature.encode(value, cell)
    number = _number(value)
    if isinstance(feature, CategoricalFeature) and number not in range(len(feature.vocabulary)):
        msg = f"must be a position in the vocabulary of {feature.name}, 0 to {len(feature.vocabulary) - 1}"
        raise _ValueError("category_position", msg)
    cell[0] = number
    return None


class FeatureSchema(_Frozen):
    """Every modality of a model, in the order of its uniqueness experts and graph inputs.

    `missing` says what a record without one of the modalities means: "learned" (the model has a learned token for it)
    or "reject" (such a record is refused, as in the paper, which discards these samples).
    """

    modalities: tuple[Modality, ...] = Field(min_length=1)
    missing: Literal["learned", "reject"] = "learned"

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "FeatureSchema":
        names = [modality.name for modality in self.modalities]
        if len(set(names)) != len(names) or {"id"} & set(names):
            raise ValueError(f"modality names must be distinct and not 'id', found {names}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Modality names in order."""
        return tuple(modality.name for modality in self.modalities)

    def encode(self, record: Mapping[str, Any]) -> EncodedRecord:
        """Turn one record into one float32 row per modality, NaN where a value is missing.

        An `id` key is ignored. Raises `InvalidRecordError` listing every problem of the record.
        """
        reader = _Reader()
        for name in record:
            if name != "id" and name not in self.names:
                msg = f"is not a modality of this model; expected {', '.join(self.names)}"
                reader.problems.append(Problem((str(name),), "unknown_modality", msg))
        arrays = {
            modality.name: self._encode_modality(modality, record.get(modality.name), reader) for modality in self.modalities
        }
        self._note_missing(arrays, reader)
        if reader.problems:
            raise InvalidRecordError(reader.problems)
        return EncodedRecord(arrays, tuple(reader.missing), tuple(reader.warnings))

    def encode_many(self, records: Sequence[Mapping[str, Any]]) -> dict[str, FloatArray]:
        """Encode records that are known to be good: one (B, columns) array per modality. Raises on the first bad one."""
        return self.stack([self.encode(record).arrays for record in records])

    def stack(self, rows: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
        """Encoded rows as one (B, columns) float32 array per modality."""
        return {
            modality.name: np.stack([row[modality.name] for row in rows]) if rows else np.empty((0, modality.width), np.float32)
            for modality in self.modalities
        }

    @staticmethod
    def _encode_modality(modality: Modality, values: object, reader: _Reader) -> FloatArray:
        row = np.full(modality.width, _NAN, np.float32)
        if isinstance(values, Mapping):
            reader.named(modality, values, row)
        elif isinstance(values, list | tuple):
            reader.flat(modality, values, row)
        elif values is not None:
            msg = f"must be an object of named features or a list of {modality.width} numbers, found {_kind_of(values)}"
            reader.problems.append(Problem((modality.name,), "modality_type", msg))
        return row

    def _note_missing(self, arrays: Mapping[str, FloatArray], reader: _Reader) -> None:
        absent = [name for name in self.names if np.isnan(arrays[name]).all()]
        if len(absent) == len(self.names) and not reader.problems:
            msg = f"has no value in any modality; expected at least one of {', '.join(self.names)}"
            reader.problems.append(Problem((), "missing", msg))
        for modality in self.modalities:
            row = arrays[modality.name]
            if modality.name in absent:
                reader.missing.append(modality.name)
                if self.missing == "reject" and not reader.problems:
                    reader.problems.append(Problem((modality.name,), "missing", "is required by this model and has no value"))
                continue
            if np.isnan(row).any():
                reader.missing += [
                    f"{modality.name}.{f.name}" for f, columns in modality.columns() if np.isnan(row[columns]).any()
                ]
