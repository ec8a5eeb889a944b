"""Scores a trained model on the rows of a dataset: metrics with intervals, dataset-level explanation, metrics.json."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.bundle.documents import MAX_JSON_BYTES, DocumentError, parse_json, read_file
from service.bundle.embedding import texts_of_records
from service.bundle.explanation import explain_dataset
from service.bundle.manifest import CalibrationInfo, DatasetExplanation, MetricValue
from service.bundle.output import Output
from service.bundle.tables import TableError, absent_columns, table_records
from service.bundle.validity import ExplanationValidity
from training.checkpoint import METRICS_FILE, Checkpoint
from training.config import sentence
from training.data.config import SplitConfig
from training.data.embedded_text import embed_texts
from training.data.encode import encode_records
from training.data.labels import read_target
from training.data.rows import RowArray
from training.data.source import load_source
from training.errors import DataError, RunError
from training.files import write_text
from training.inference import predict
from training.tasks import make_task
from training.validity.judge import judge


class _Split(BaseModel):
    """What every reader of metrics.json needs of a split; other parts are checked where they are used."""

    metrics: dict[str, MetricValue]


_SPLITS = TypeAdapter(dict[str, _Split])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One set of rows, scored."""

    output: Output
    target: NDArray[Any]
    metrics: Mapping[str, MetricValue]
    explanation: DatasetExplanation
    validity: ExplanationValidity | None = None  # how far explanations can be trusted
    validity_seconds: float = 0.0  # what checking that took

    def document(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        metrics = {name: value.model_dump(exclude_none=True) for name, value in self.metrics.items()}
        document = {"num_rows": len(self.target), "metrics": metrics, "explanation": self.explanation.model_dump(mode="json")}
        return document | ({} if self.validity is None else {"validity": self.validity.model_dump(mode="json")})


def calibration_info(checkpoint: Checkpoint) -> CalibrationInfo:
    """The calibration inside the model, for the manifest and the explanation."""
    return checkpoint.model.calibration.info(num_rows=checkpoint.provenance["num_rows"]["validation"])


def evaluate_rows(
    checkpoint: Checkpoint, arrays: Mapping[str, RowArray], target: NDArray[Any], split: str, *, with_validity: bool = True
) -> Evaluation:
    """Score (N, columns) arrays against their target (N,), and check what explanations of them are worth. Raises `RunError`."""
    output = predict(checkpoint.model, checkpoint.schema, arrays, workers=checkpoint.recipe.train.workers)
    if not all(np.isfinite(array).all() for array in output.arrays):
        raise RunError(f"{split}: the model answers with numbers that are not finite: are its weights damaged?")
    num_bootstraps = checkpoint.recipe.train.num_bootstraps
    metrics = make_task(checkpoint.task).evaluate(output.prediction, target, num_bootstraps=num_bootstraps)
    try:
        explanation = explain_dataset(
            output,
            target,
            task=checkpoint.task,
            calibration=calibration_info(checkpoint),
            experts=checkpoint.model.roles,
            split=split,
        )
        started = time.perf_counter()
        validity = judge(checkpoint, arrays, output, split, calibration_info(checkpoint)) if with_validity else None
    except ValidationError as error:  # of figures that are not finite
        raise RunError(f"{split}: the model cannot be explained: {sentence(error.errors()[0])}") from None
    return Evaluation(output, target, metrics, explanation, validity, time.perf_counter() - started)


def evaluate_file(checkpoint: Checkpoint, path: Path) -> Evaluation:
    """Score another table that has the recipe's label and feature columns. Raises `DataError`."""
    no_split = SplitConfig(validation=0.1, test=0.1)  # another file needs neither a split column nor groups
    config = checkpoint.recipe.data.model_copy(update={"path": path.absolute(), "group": None, "split": no_split})
    source = load_source(config, Path())
    target = read_target(source.frame, config)
    if list(target.classes) != checkpoint.provenance["classes"]:
        expected, found = ", ".join(checkpoint.provenance["classes"]), ", ".join(target.classes)
        raise DataError(f"{path}: label {config.label}: expected the values {expected}, found {found}")
    try:
        table = source.frame.to_arrow()
        if absent := absent_columns(table, checkpoint.schema):
            raise DataError(f"{path}: has no column for {', '.join(absent)}")
        records = list(table_records(table, checkpoint.schema))
    except TableError as error:
        raise DataError(f"{path}: {error}") from error
    schema = embed_texts(checkpoint.schema, texts_of_records(checkpoint.schema, records))
    return evaluate_rows(checkpoint, encode_records(schema, records), target.values, path.name)


def write_metrics(document: Mapping[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    write_text(json.dumps(document, indent=1) + "\n", path)


def read_metrics(run: Path) -> dict[str, Any]:
    """RUN/metrics.json. Raises `RunError`."""
    path = run / METRICS_FILE
    try:
        document: dict[str, Any] = parse_json(read_file(path, MAX_JSON_BYTES))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; expected a folder of a finished python -m training fit") from None
    except DocumentError as error:
        raise RunError(f"{path}: is damaged ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("splits"), dict):
        raise RunError(f"{path}: is damaged (expected the metrics of splits)")
    try:
        _SPLITS.validate_python(document["splits"])
    except ValidationError as error:
        raise RunError(f"{path}: is damaged (splits.{sentence(error.errors()[0])})") from None
    return document
