"""A recipe's data, ready to train on: splits, fitted schema, arrays, target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundle.errors import InvalidRecordError
from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema, is_missing
from service.bundle.tables import records_from_columns
from training.data.config import DataConfig
from training.data.fit import Columns, fit_schema, read_columns
from training.data.labels import read_target
from training.data.source import load_source
from training.data.split import Rows, split_rows
from training.errors import DataError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded rows. Row i of every array, of `target` and of `records` is the same patient."""

    schema: FeatureSchema
    task: TaskInfo
    arrays: Mapping[str, FloatArray]  # modality -> (N, columns), NaN where missing
    target: NDArray[Any]  # class positions (N,), 0/1 labels (N, C) or numbers (N,)
    splits: Mapping[str, Rows]
    records: list[dict[str, Any]]  # what was encoded, for reference examples
    notes: tuple[str, ...]  # what was dropped and why
    classes: tuple[str, ...] = ()  # the label's values as the table spells them, in the order of task.labels

    def part(self, split: str) -> tuple[dict[str, FloatArray], NDArray[Any]]:
        """The arrays and target of one split."""
        rows = self.splits[split]
        return {name: array[rows] for name, array in self.arrays.items()}, self.target[rows]


def load_dataset(config: DataConfig, folder: Path, *, seed: int, missing: Literal["learned", "reject"] = "learned") -> Dataset:
    """Read, split, fit on the training rows, encode. `folder` is where the recipe lies. Raises `DataError`."""
    source = load_source(config, folder)
    columns = read_columns(source, config.modalities, folder)
    usable, notes = _usable_rows(columns, source.frame.height, missing)
    frame = source.frame.filter(pl.Series(usable))
    columns = {m: {n: [v for v, keep in zip(c, usable, strict=True) if keep] for n, c in cs.items()} for m, cs in columns.items()}
    target = read_target(frame, config)
    splits = split_rows(frame, target.strata, config.split, group=config.group, seed=seed)
    task = target.task_info(config, splits["train"])
    schema = fit_schema(columns, config.modalities, splits["train"], missing)
    records = list(records_from_columns(columns, frame.height))
    arrays = encode_records(schema, records)
    return Dataset(schema, task, arrays, target.values, splits, records, (*source.notes, *notes), target.classes)


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
