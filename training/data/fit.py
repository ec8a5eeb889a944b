"""Fits a feature schema to training rows: ranges, vocabularies, word statistics."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from service.bundle.features import Grouping, UnfitValueError, code_groups, kind_of
from service.bundle.schema import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    Feature,
    FeatureSchema,
    Modality,
    NumericFeature,
    TextFeature,
    category_text,
    is_missing,
    split_codes,
)
from service.bundle.tables import TableError
from service.bundle.text import fit_tfidf
from training.config import sentence
from training.data.config import CodesConfig, DataConfig, ModalityConfig, TextConfig
from training.data.embedded_text import fit_embedded_text
from training.data.rows import Column, Columns, LazyRows, NpyRows, RowArray, kept_in_memory, map_npy
from training.data.source import Source
from training.data.split import Rows
from training.data.tables import column_values
from training.errors import DataError

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")
_MAX_TOLD = 10  # columns that cannot be read
_NUMBERS_ARE = (
    "; a numeric column holds numbers and empty cells alone, no date, no unit and no <5 (rows count without the header)"
)


def read_columns(source: Source, config: DataConfig, folder: Path) -> Columns:
    """The values of every feature, row by row, None where missing. Raises `DataError` with a line for every bad column."""
    columns: dict[str, dict[str, Column]] = {name: {} for name in source.modalities}
    problems = []
    for name, modality in source.modalities.items():
        for column in modality.columns:
            try:
                columns[name][column] = column_values(source.frame, column, numeric=column in modality.numeric)
            except TableError as error:
                problems.append(f"{error}{_NUMBERS_ARE if column in modality.numeric else ''}")
        if modality.array is not None:
            array = _row_array(source, modality.array, folder)
            columns[name][modality.array.stem] = kept_in_memory(array, config.in_memory_mb << 20)
    if problems:
        more = [f"and {len(problems) - _MAX_TOLD} more columns"] if len(problems) > _MAX_TOLD else []
        raise DataError("\n".join([*problems[:_MAX_TOLD], *more]))
    return columns


def _row_array(source: Source, array: Path, folder: Path) -> RowArray:
    """An array of the named data set, or else a .npy file."""
    named = source.arrays.get(str(array))
    return _read_array(folder / array, source.frame.height) if named is None else named


def _read_array(path: Path, num_rows: int) -> NpyRows:
    array = map_npy(path)
    if array.ndim < 2 or len(array) != num_rows or array.dtype.kind not in "iuf":
        raise DataError(f"{path}: expected numbers of shape ({num_rows}, ...), found {array.dtype} {array.shape}")
    return NpyRows(path, array.shape)


def fit_schema(
    columns: Columns,
    modalities: Mapping[str, ModalityConfig],
    rows: Rows,
    missing: Literal["learned", "reject"],
    *,
    folder: Path = Path(),
) -> FeatureSchema:
    """The schema whose statistics are those of `rows` alone. Raises `DataError` for a feature without any value there.

    `folder` is where the recipe lies, whose text encoders are opened.
    """
    fitted = []
    for name, config in modalities.items():
        try:
            fitted.append(Modality(name=name, features=tuple(_fit_features(name, config, columns[name], rows, folder))))
        except UnfitValueError as error:
            raise DataError(f"modality {name}: a training row {error}") from error
    try:
        return FeatureSchema(modalities=tuple(fitted), missing=missing)
    except ValidationError as error:
        raise DataError(f"modalities: {sentence(error.errors()[0])}") from None


def _fit_features(
    modality: str, config: ModalityConfig, columns: Mapping[str, Column], rows: Rows, folder: Path
) -> Iterable[Feature]:
    def seen(column: str) -> list[Any]:
        values = [value for row in rows if not is_missing(value := columns[column][row])]
        if not values:
            raise DataError(f"modality {modality}: column {column} has no value in the {len(rows)} training rows")
        return values

    for column in config.numeric:
        values = seen(column)
        yield NumericFeature(
            name=column,
            loinc=config.loinc.get(column, ()),
            unit=config.units.get(column),
            summary=config.summaries.get(column, "last"),
            lookback_hours=config.lookback(column),
            minimum=min(values),
            maximum=max(values),
        )
    for column in config.categorical:
        yield CategoricalFeature(name=column, loinc=config.loinc.get(column, ()), vocabulary=sorted_categories(seen(column)))
    if config.codes is not None:
        yield _fit_codes(config.codes, seen(config.codes.column), config.loinc.get(config.codes.column, ()))
    if config.text is not None:
        yield _fit_text(config.text, seen(config.text.column), config.loinc.get(config.text.column, ()), folder)
    if config.array is not None:
        array = columns[config.array.stem]
        assert isinstance(array, np.ndarray | LazyRows)
        yield ArrayFeature(name=config.array.stem, shape=array.shape[1:])


def sorted_categories(values: Iterable[Any]) -> tuple[str, ...]:
    """Distinct categories, numbers in numeric order before words in alphabetical order."""

    def order(text: str) -> tuple[bool, float, str]:
        is_number = _NUMBER.fullmatch(text) is not None
        return (not is_number, float(text) if is_number else 0.0, text)

    return tuple(sorted({category_text(value) for value in values}, key=order))


def _fit_codes(config: CodesConfig, values: Iterable[Any], loinc: tuple[str, ...]) -> CodesFeature:
    counts = Counter(word for value in values for word in _words(split_codes(value, config.separator), config.grouping))
    vocabulary = tuple(sorted(word for word, count in counts.items() if count >= config.min_count))
    if not vocabulary:
        raise DataError(f"column {config.column}: no code is found in at least {config.min_count} training rows")
    return CodesFeature(
        name=config.column, loinc=loinc, vocabulary=vocabulary, separator=config.separator, grouping=config.grouping
    )


def _words(codes: Sequence[str], grouping: Grouping | None) -> Iterable[str]:
    """What one row counts for: its codes, or each of their groups once."""
    return codes if grouping is None else {group for code in codes for group in code_groups(code)}


def _fit_text(config: TextConfig, values: Sequence[Any], loinc: tuple[str, ...], folder: Path) -> Feature:
    if others := [value for value in values if not isinstance(value, str)]:
        raise UnfitValueError("string_type", f"must hold text in column {config.column}, found {kind_of(others[0])}")
    if config.path is not None:
        return fit_embedded_text(config, folder / config.path, loinc)
    idf = fit_tfidf(values, min_count=config.min_count, max_features=config.max_features)
    if not idf:
        raise DataError(f"column {config.column}: no word is found in at least {config.min_count} training rows")
    return TextFeature(name=config.column, loinc=loinc, vocabulary=tuple(idf), idf=tuple(idf.values()))


def spelling_notes(schema: FeatureSchema) -> tuple[str, ...]:
    """One sentence for every categorical feature of which some categories differ in nothing but case or spaces.

    It names the column and counts; the categories themselves are patients' values.
    """
    return tuple(_spelling_notes(schema))


def _spelling_notes(schema: FeatureSchema) -> Iterator[str]:
    features = ((modality.name, feature) for modality in schema.modalities for feature in modality.features)
    for modality, feature in features:
        if isinstance(feature, CategoricalFeature) and (num_alike := _count_alike(feature.vocabulary)):
            counted = f"{num_alike} of its {len(feature.vocabulary)} categories differ from another in case or spaces alone"
            yield f"{modality}.{feature.name}: {counted}; each is learned as one of its own: spell them alike in the table"


def _count_alike(vocabulary: Sequence[str]) -> int:
    """How many categories would be gone if case and spaces did not count."""
    return len(vocabulary) - len({" ".join(category.split()).casefold() for category in vocabulary})
