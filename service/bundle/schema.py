"""The feature schema: what a record may hold, and how it becomes the arrays the graph reads.

Training fits a schema and encodes its tables with it; the service loads the same schema from the manifest and encodes
requests with it. There is no second way from a record to an array. No torch, no web framework, no files here.

A record is a mapping of modality name to either named features (``{"labs": {"crea": 1.4}}``) or the modality's flat
vector (``{"labs": [1.4, null, ...]}``, one entry per column, category features as their position in the vocabulary).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.bundle.errors import InvalidRecordError, Problem, shortened
from service.bundle.features import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    EmbeddedTextFeature,
    Embedder,
    Feature,
    FloatArray,
    Frozen,
    NumericFeature,
    TextFeature,
    TextReading,
    UnfitValueError,
    category_text,
    is_missing,
    kind_of,
    read_number,
    read_numbers,
    split_codes,
)

__all__ = [
    "ArrayFeature",
    "CategoricalFeature",
    "CodesFeature",
    "EmbeddedTextFeature",
    "EncodedRecord",
    "Feature",
    "FeatureSchema",
    "FloatArray",
    "Modality",
    "NumericFeature",
    "TextFeature",
    "category_text",
    "is_missing",
    "split_codes",
]

Flat = Sequence[object] | NDArray[Any]
MAX_COLUMNS = 1 << 24  # of a record, 64 MiB as float32: a scan of 256 x 256 x 256 cells
MAX_PROBLEMS = 100  # of one record; a hostile record must not make a long answer
_MAX_KEY_LENGTH = 64


class Modality(Frozen):
    """One named group of features: one encoder of the model, one input of the graph."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    features: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "Modality":
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError(f"modality {self.name} names a feature twice: {sorted({n for n in names if names.count(n) > 1})}")
        return self

    @cached_property
    def width(self) -> int:
        """Number of columns of this modality's graph input."""
        return sum(feature.width for feature in self.features)

    @cached_property
    def by_name(self) -> dict[str, tuple[Feature, slice]]:
        """Feature name to the feature and its columns, in schema order."""
        return {feature.name: (feature, columns) for feature, columns in self.columns()}

    @cached_property
    def with_rules(self) -> tuple[tuple[Feature, slice], ...]:
        """The features, with their columns, that look at the numbers of a flat vector."""
        return tuple((feature, columns) for feature, columns in self.columns() if feature.has_rules)

    @cached_property
    def column_owners(self) -> list[str]:
        """For each column the name of its feature."""
        return [feature.name for feature in self.features for _ in range(feature.width)]

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

    def refuse(self, loc: tuple[str | int, ...], type_: str, msg: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(loc, type_, msg))

    def read(self, modality: Modality, values: object, *, required: bool) -> FloatArray:
        """The modality's row (columns,), NaN where missing or refused."""
        row = np.full(modality.width, np.nan, np.float32)
        num_problems = len(self.problems)
        if isinstance(values, Mapping):
            self._read_named(modality, values, row)
        elif isinstance(values, list | tuple | np.ndarray):
            self._read_flat(modality, values, row)
        elif values is not None:
            msg = f"must be an object of named features or a list of {modality.width} numbers, found {kind_of(values)}"
            self.refuse((modality.name,), "modality_type", msg)
        if len(self.problems) == num_problems:
            self._note_missing(modality, row, required=required)
        return row

    def _read_named(self, modality: Modality, values: Mapping[Any, object], row: FloatArray) -> None:
        by_name = modality.by_name
        for name, value in values.items():
            if name not in by_name:
                self.refuse((modality.name, shown_key(name)), "unknown_feature", f"is not a feature of {modality.name}")
                continue
            plain = value.item() if isinstance(value, np.generic) else value
            if is_missing(plain):
                continue
            feature, columns = by_name[name]
            try:
                encoded, warning = feature.encode(plain)
            except UnfitValueError as error:
                self.refuse((modality.name, name), error.type, str(error))
                continue
            row[columns.start if isinstance(encoded, float) else columns] = encoded  # one cell is written five times faster
            if warning is not None:
                self._warn(modality, feature, warning)

    def _read_flat(self, modality: Modality, values: Flat, row: FloatArray) -> None:
        if len(values) != modality.width:
            msg = f"must have {modality.width} values, found {len(values)}"
            self.refuse((modality.name,), "vector_length", msg)
            return
        numbers = self._read_cells(modality, values)
        row[:] = numbers
        cells = numbers.tolist() if modality.with_rules else ()
        for feature, columns in modality.with_rules:
            try:
                warning = feature.check_cells(cells[columns])
            except UnfitValueError as error:
                self.refuse((modality.name, columns.start + error.offset), error.type, str(error))
                continue
            if warning is not None:
                self._warn(modality, feature, warning)

    def _read_cells(self, modality: Modality, values: Flat) -> NDArray[np.float64]:
        """A flat vector's numbers, NaN where missing or refused."""
        try:
            numbers = read_numbers(values)  # all at once, for images
        except UnfitValueError:
            numbers = None
        if numbers is not None and numbers.ndim == 1:
            return numbers
        plain = values.tolist() if isinstance(values, np.ndarray) else values
        return np.array([self._read_cell(modality, position, value) for position, value in enumerate(plain)])

    def _read_cell(self, modality: Modality, position: int, value: object) -> float:
        if is_missing(value):
            return np.nan
        try:
            return read_number(value)
        except UnfitValueError as error:
            self.refuse((modality.name, position), error.type, str(error))
            return np.nan

    def _warn(self, modality: Modality, feature: Feature, warning: str) -> None:
        self.warnings.append(f"{modality.name}.{feature.name} {warning}")

    def _note_missing(self, modality: Modality, row: FloatArray, *, required: bool) -> None:
        gaps = np.isnan(row).nonzero()[0].tolist()
        if not gaps:
            return
        if len(gaps) < len(row):
            owners = modality.column_owners
            self.missing += [f"{modality.name}.{name}" for name in dict.fromkeys(owners[gap] for gap in gaps)]
        elif required:
            self.refuse((modality.name,), "missing", "is required by this model and has no value")
        else:
            self.missing.append(modality.name)


class _Unread:
    """Takes every text for one that can be read."""

    def embed(self, _text: str, feature: EmbeddedTextFeature, /) -> TextReading:
        return TextReading(np.zeros(feature.dimension, np.float32), 0, 0)


def shown_key(key: object) -> str:
    """A caller's own key in one short line, whatever it holds."""
    return "".join(c if c.isprintable() else "?" for c in str(key)[:_MAX_KEY_LENGTH])


class FeatureSchema(Frozen):
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

    @model_validator(mode="after")
    def _a_record_fits_memory(self) -> "FeatureSchema":
        if (width := sum(modality.width for modality in self.modalities)) > MAX_COLUMNS:
            raise ValueError(f"expected {MAX_COLUMNS} columns at most in all modalities, found {shortened(str(width), 30)}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Modality names in order."""
        return tuple(modality.name for modality in self.modalities)

    @cached_property
    def embedded(self) -> tuple[tuple[str, EmbeddedTextFeature], ...]:
        """The features that need a text encoder, each with its modality's name."""
        return tuple((m.name, f) for m in self.modalities for f in m.features if isinstance(f, EmbeddedTextFeature))

    def with_encoders(self, encoder_of: Callable[[str, EmbeddedTextFeature], Embedder]) -> "FeatureSchema":
        """The same schema, whose embedded texts are read by `encoder_of(modality, feature)`."""
        if not self.embedded:
            return self

        def given(modality: str, feature: Feature) -> Feature:
            return feature.with_encoder(encoder_of(modality, feature)) if isinstance(feature, EmbeddedTextFeature) else feature

        modalities = (Modality(name=m.name, features=tuple(given(m.name, f) for f in m.features)) for m in self.modalities)
        return FeatureSchema(modalities=tuple(modalities), missing=self.missing)

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise what `encode` raises, texts unread: for a schema whose text encoders are not there yet."""
        self.with_encoders(lambda _modality, _feature: _Unread()).encode(record)

    def encode(self, record: Mapping[str, Any]) -> EncodedRecord:
        """Turn one record into one float32 row per modality, NaN where a value is missing.

        An `id` key is ignored. Raises `InvalidRecordError` listing the problems of the record (`MAX_PROBLEMS` at most).
        """
        reader = _Reader()
        if not isinstance(record, Mapping):
            raise InvalidRecordError([Problem((), "record_type", f"must be an object of modalities, found {kind_of(record)}")])
        for name in record:
            if name != "id" and name not in self.names:
                msg = f"is not a modality of this model; expected {', '.join(self.names)}"
                reader.refuse((shown_key(name),), "unknown_modality", msg)
        required = self.missing == "reject"
        arrays = {m.name: reader.read(m, record.get(m.name), required=required) for m in self.modalities}
        if not reader.problems and reader.missing == list(self.names):
            msg = f"has no value that the model knows; expected at least one in {', '.join(self.names)}"
            if reader.warnings:
                msg += f" ({'; '.join(reader.warnings)})"
            reader.refuse((), "missing", msg)
        if reader.problems:
            raise InvalidRecordError(reader.problems)
        return EncodedRecord(arrays, tuple(reader.missing), tuple(reader.warnings))

    def encode_many(self, records: Sequence[Mapping[str, Any]]) -> dict[str, FloatArray]:
        """Encode records that are known to be good: one (B, columns) array per modality. Raises on the first bad one."""
        return self.stack([self.encode(record).arrays for record in records])

    def stack(self, rows: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
        """Encoded rows as one (B, columns) float32 array per modality."""
        return {
            modality.name: np.array([row[modality.name] for row in rows]) if rows else np.empty((0, modality.width), np.float32)
            for modality in self.modalities
        }
