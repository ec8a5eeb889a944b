"""A recipe's data, ready to train on: splits, fitted schema, arrays, target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from service.bundle.errors import InvalidRecordError
from service.bundle.features import UnfitValueError
from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema, category_text, is_missing
from service.bundle.tables import records_from_columns
from training.data.config import DataConfig
from training.data.fit import Columns, fit_schema, read_columns, sorted_categories
from training.data.source import load_source
from training.data.split import Rows, split_rows
from training.errors import DataError, RecipeError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded rows. Row i of every array, of `target` and of `records` is the same patient."""

    schema: FeatureSchema
    task: TaskInfo
    arrays: Mapping[str, FloatArray]  # modality -> (N, columns), NaN where missing
    target: NDArray[np.int64]  # (N,), position in task.labels
    splits: Mapping[str, Rows]
    records: list[dict[str, Any]]  # what was encoded, for reference examples
    notes: tuple[str, ...]  # what was dropped and why

    def part(self, split: str) -> tuple[dict[str, FloatArray], NDArray[np.int64]]:
        """The arrays and target of one split."""
        rows = self.splits[split]
        return {name: array[rows] for name, array in self.arrays.items()}, self.target[rows]


def load_dataset(config: DataConfig, folder: Path, *, seed: int, missing: Literal["learned", "reject"] = "learned") -> Dataset:
    """Read, split, fit on the training rows, encode. `folder` is where the recipe lies. Raises `DataError`."""
    source = load_source(config, folder)
    values = label_values(source.frame, config.label)
    columns = read_columns(source.frame, config.modalities, folder)
    usable, notes = _usable_rows(columns, source.frame.height, missing)
    frame, values = source.frame.filter(pl.Series(usable)), [v for v, keep in zip(values, usable, strict=True) if keep]
    columns = {m: {n: [v for v, keep in zip(c, usable, strict=True) if keep] for n, c in cs.items()} for m, cs in columns.items()}
    task, target = task_info(config, values), encode_labels(values, config)
    splits = split_rows(frame, target, config.split, group=config.group, seed=seed)
    schema = fit_schema(columns, config.modalities, splits["train"], missing)
    records = list(records_from_columns(columns, frame.height))
    arrays = encode_records(schema, records)
    return Dataset(schema, task, arrays, target, splits, records, (*source.notes, *notes))


def encode_records(schema: FeatureSchema, records: list[dict[str, Any]]) -> dict[str, FloatArray]:
    """Encode a table's records. Raises `DataError` naming the first row that does not fit."""
    rows = []
    for number, record in enumerate(records, start=1):
        try:
            rows.append(schema.encode(record).arrays)
        except InvalidRecordError as error:
            raise DataError(f"row {number}: {error}") from error
    return schema.stack(rows)


def _usable_rows(columns: Columns, num_rows: int, missing: str) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Rows with a value in any modality ("learned") or in every modality ("reject"), and what to say of the others."""
    present = np.array(
        [[any(not _absent(c[row]) for c in features.values()) for features in columns.values()] for row in range(num_rows)]
    )
    required = len(columns) if missing == "reject" else 1
    usable = present.sum(axis=1) >= required
    num_dropped = int((~usable).sum())
    if num_dropped == num_rows:
        raise DataError(f"no row of {num_rows} has a value in {'every' if missing == 'reject' else 'any'} modality")
    reason = "without a value in one of the modalities (missing = reject)" if missing == "reject" else "without any value"
    note = f"{num_dropped} of {num_rows} rows dropped: {reason}"
    return usable, (note,) if num_dropped else ()


def _absent(value: Any) -> bool:
    return bool(np.isnan(value).all()) if isinstance(value, np.ndarray) else is_missing(value)


def label_values(frame: pl.DataFrame, label: str) -> list[str]:
    """The label of every row, spelled as a category. Raises `DataError` when a row has none."""
    values = frame.get_column(label).to_list()
    num_missing = sum(is_missing(value) or str(value).strip().lower() == "nan" for value in values)
    if num_missing:
        raise DataError(f"label {label}: {num_missing} of {len(values)} rows have no value; expected a class in every row")
    try:
        return [category_text(value) for value in values]
    except UnfitValueError as error:
        raise DataError(f"label {label}: {error}") from error


def _classes(config: DataConfig, values: list[str]) -> list[str]:
    """The label's distinct values in order; names given in the recipe fix the order when they are the values themselves."""
    found = sorted_categories(values)
    return list(config.labels) if set(config.labels) == set(found) else list(found)


def task_info(config: DataConfig, values: list[str]) -> TaskInfo:
    """The task, with its class names. Raises `DataError` when the classes found are not those expected."""
    classes = _classes(config, values)
    expected = len(config.labels) or (2 if config.task == "binary" else None)
    if len(classes) < 2 or (expected is not None and len(classes) != expected):
        found = ", ".join(classes[:10])
        raise DataError(f"label {config.label}: expected {expected or 'at least 2'} classes, found {len(classes)} ({found})")
    if config.task == "binary" and len(classes) != 2:
        raise DataError(f'label {config.label}: a binary task has 2 classes, found {len(classes)}; use task = "multiclass"')
    try:
        return TaskInfo(
            kind=config.task,
            labels=config.labels or tuple(classes),
            outcome=config.outcome or config.label.replace("_", " "),
            threshold=config.threshold,
            risk_bands=config.risk_bands,
        )
    except ValidationError as error:
        raise RecipeError(f"data: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def encode_labels(values: list[str], config: DataConfig) -> NDArray[np.int64]:
    """Label values to class positions (N,)."""
    positions = {value: i for i, value in enumerate(_classes(config, values))}
    return np.array([positions[value] for value in values], np.int64)
