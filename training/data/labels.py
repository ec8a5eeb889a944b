"""From the label column(s) of a table to targets: one reader per kind of task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from service.bundle.features import UnfitValueError, category_text, is_missing
from service.bundle.manifest import TaskInfo
from service.bundle.tables import TableError
from training.data.config import DataConfig
from training.data.fit import sorted_categories
from training.data.tables import numbers
from training.errors import DataError, RecipeError


@dataclass(frozen=True, slots=True)
class Target:
    """The target of every row, and what its values are called."""

    values: NDArray[Any]  # class positions (N,) int64; 0/1 labels (N, C) float32; numbers (N,) float32
    labels: tuple[str, ...]  # in logit order
    strata: NDArray[np.int64]  # (N,), what a split is stratified by: classes, or all the same
    classes: tuple[str, ...] = ()  # binary and multiclass: the values that `labels` name, in the same order

    def task_info(self, config: DataConfig, training_rows: NDArray[np.intp]) -> TaskInfo:
        """The task; for regression with the mean of the training rows, which contributions start from. Raises `RecipeError`."""
        is_regression = config.task == "regression"
        try:
            return TaskInfo(
                kind=config.task,
                labels=self.labels,
                outcome=config.outcome or config.label_columns[0].replace("_", " "),
                threshold=config.threshold,
                risk_bands=config.risk_bands,
                training_mean=float(self.values[training_rows].mean()) if is_regression else None,
            )
        except ValidationError as error:
            raise RecipeError(f"data: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def read_target(frame: pl.DataFrame, config: DataConfig) -> Target:
    """Read the label of every row. Raises `DataError` when a row has none or when classes are not those expected."""
    match config.task:
        case "regression":
            return _read_numbers(frame, config)
        case "multilabel":
            return _read_flags(frame, config)
        case _:
            return _read_classes(frame, config)


def _read_classes(frame: pl.DataFrame, config: DataConfig) -> Target:
    values = label_values(frame, config.label_columns[0])
    classes = _classes(config, values)
    _check_classes(classes, config)
    positions = {value: i for i, value in enumerate(classes)}
    target = np.array([positions[value] for value in values], np.int64)
    return Target(target, config.labels or tuple(classes), target, tuple(classes))


def label_values(frame: pl.DataFrame, label: str) -> list[str]:
    """The label of every row, spelled as a category. Raises `DataError` when a row has none."""
    values = frame.get_column(label).to_list()
    _refuse_missing(label, values)
    try:
        return [category_text(value) for value in values]
    except UnfitValueError as error:
        raise DataError(f"label {label}: {error}") from error


def _refuse_missing(label: str, values: Sequence[Any]) -> None:
    num_missing = sum(is_missing(value) or str(value).strip().lower() == "nan" for value in values)
    if num_missing:
        raise DataError(f"label {label}: {num_missing} of {len(values)} rows have no value; expected one in every row")


def _classes(config: DataConfig, values: list[str]) -> list[str]:
    """The label's distinct values in order; names given in the recipe fix the order when they are the values themselves."""
    found = sorted_categories(values)
    return list(config.labels) if set(config.labels) == set(found) else list(found)


def _check_classes(classes: list[str], config: DataConfig) -> None:
    is_binary = config.task == "binary"
    expected = len(config.labels) or (2 if is_binary else None)
    if len(classes) < 2 or (expected is not None and len(classes) != expected):
        hint = '; use task = "multiclass"' if is_binary and len(classes) > 2 else ""
        found = f"{len(classes)} ({', '.join(classes[:10])})"
        raise DataError(f"label {config.label_columns[0]}: expected {expected or 'at least 2'} classes, found {found}{hint}")


def _numbers(frame: pl.DataFrame, column: str) -> NDArray[np.float32]:
    try:
        series = numbers(frame, column)
    except TableError as error:
        raise DataError(f"label {error}") from error
    _refuse_missing(column, series.to_list())
    return series.to_numpy().astype(np.float32)


def _read_numbers(frame: pl.DataFrame, config: DataConfig) -> Target:
    (column,) = config.label_columns
    values = _numbers(frame, column)
    if values.min() == values.max():
        raise DataError(f"label {column}: expected numbers that differ, found {values[0]:g} in every row")
    return Target(values, config.labels or (column,), np.zeros(len(values), np.int64))


def _read_flags(frame: pl.DataFrame, config: DataConfig) -> Target:
    columns = config.label_columns
    flags = np.stack([_numbers(frame, column) for column in columns], axis=1)
    if not np.isin(flags, (0, 1)).all():
        column = columns[int(np.argmax(~np.isin(flags, (0, 1)).all(axis=0)))]
        raise DataError(f"label {column}: expected 0 or 1 in every row")
    return Target(flags, config.labels or columns, np.zeros(len(flags), np.int64))
