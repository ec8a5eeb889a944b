"""Flat vectors of many records at once: checked by the rules of `FeatureSchema.encode`, without a Python object per number."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bundle.errors import InvalidRecordError, Problem
from service.bundle.features import FLOAT32_MAX, Feature, FloatArray, UnfitValueError
from service.bundle.schema import MAX_PROBLEMS, FeatureSchema, Modality

Numbers = NDArray[Any]  # of any float type


class FlatRecords(NamedTuple):
    """Good records: arrays (B, columns) as the graph reads them, and which records (B,) have no value of a modality."""

    arrays: dict[str, FloatArray]
    absent: dict[str, NDArray[np.bool_]]

    def one_by_one(self) -> list[dict[str, FloatArray]]:
        """Each record as the flat vectors of the modalities that it has."""
        sizes = range(len(next(iter(self.arrays.values()))))
        return [{name: rows[i] for name, rows in self.arrays.items() if not self.absent[name][i]} for i in sizes]


def encode_flat(arrays: Mapping[str, Numbers], num_records: int, schema: FeatureSchema) -> FlatRecords:
    """Check arrays (B, columns) by modality, NaN where missing; a modality may be left out.

    Raises `InvalidRecordError` with the places (modality, record, column) that no record may hold, `MAX_PROBLEMS` at most.
    Shapes are the caller's to check.
    """
    absent = {m.name: _absent(arrays.get(m.name), num_records) for m in schema.modalities}
    problems = list(islice(_problems(arrays, absent, schema), MAX_PROBLEMS))
    if problems:
        raise InvalidRecordError(problems)
    return FlatRecords({m.name: _float32(arrays.get(m.name), (num_records, m.width)) for m in schema.modalities}, absent)


def _absent(values: Numbers | None, num_records: int) -> NDArray[np.bool_]:
    return np.ones(num_records, np.bool_) if values is None else np.asarray(np.isnan(values).all(axis=1))


def _float32(values: Numbers | None, shape: tuple[int, int]) -> FloatArray:
    return np.full(shape, np.nan, np.float32) if values is None else np.ascontiguousarray(values, np.float32)


def _problems(arrays: Mapping[str, Numbers], absent: Mapping[str, NDArray[np.bool_]], schema: FeatureSchema) -> Iterator[Problem]:
    for modality in schema.modalities:
        if (values := arrays.get(modality.name)) is not None:
            too_large = np.abs(values) > FLOAT32_MAX
            if too_large.any():
                yield from _unfit_numbers(modality, too_large)
            if any(feature.may_refuse for feature in modality.features):
                yield from _unfit_cells(modality, np.where(too_large, np.nan, values))  # what is no number is told already
    yield from _gaps(absent, schema)


def _unfit_numbers(modality: Modality, too_large: NDArray[np.bool_]) -> Iterator[Problem]:
    for record, column in np.argwhere(too_large).tolist():
        msg = "must be a finite number within the range of 32-bit floats, or NaN where missing"
        yield Problem((modality.name, record, column), "finite_number", msg)


def _unfit_cells(modality: Modality, values: Numbers) -> list[Problem]:
    """By record and column. The same cells are checked once, as most of a feature's are."""
    problems = []
    for feature, columns in modality.with_rules:
        if not feature.may_refuse:
            continue
        cells = [tuple(row) for row in values[:, columns].tolist()]
        refused = {row: error for row in set(cells) if (error := _refusal(feature, row)) is not None}
        for record, row in enumerate(cells) if refused else ():
            if (error := refused.get(row)) is not None:
                problems.append(Problem((modality.name, record, columns.start + error.offset), error.type, str(error)))
    return sorted(problems, key=lambda problem: problem.loc)


def _refusal(feature: Feature, cells: tuple[float, ...]) -> UnfitValueError | None:
    try:
        feature.check_cells(cells)
    except UnfitValueError as error:
        return error
    return None


def _gaps(absent: Mapping[str, NDArray[np.bool_]], schema: FeatureSchema) -> Iterator[Problem]:
    if schema.missing == "reject":
        for name, records in absent.items():
            for record in records.nonzero()[0].tolist():
                yield Problem((name, record), "missing", "is required by this model and has no value")
        return
    for record in np.logical_and.reduce(list(absent.values())).nonzero()[0].tolist():
        msg = f"has no value that the model knows; expected at least one in {', '.join(schema.names)}"
        yield Problem((record,), "missing", msg)
