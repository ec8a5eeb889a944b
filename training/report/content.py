"""Everything the page says, gathered from a run; the template only lays it out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.bundle.explanation import explain
from service.bundle.manifest import CalibrationInfo, DatasetExplanation, MetricValue, TaskInfo
from training.checkpoint import Checkpoint
from training.data.dataset import Dataset
from training.evaluation import Evaluation, calibration_info
from training.model.build import expert_infos
from training.recipe import Recipe
from training.report.curves import MAX_CURVES
from training.report.figures import draw_experts, draw_quality, draw_training, metric_title
from training.report.samples import ExplainedRows, Sample, absent_modalities, choose_samples
from training.report.style import Picture, expert_colors
from training.tasks import ECE_BINS, LOWER_IS_BETTER

_TOLD_ELSEWHERE = frozenset({"num_rows", "notes", "best_epoch", "versions"})
_MEANINGS = {
    "auroc": "how well the ranking separates the classes; 0.5 is chance",
    "auprc": "average precision; chance is the share of the class",
    "brier": "mean squared error of the probabilities",
    "ece": f"mean gap of stated and observed, {ECE_BINS} bins; chance, and resampling even more, push it up",
    "accuracy": "share of rows with the right label",
    "f1": "balance of precision and recall",
    "log_loss": "mean negative log probability of the true label",
}
_HEADLINE_METRICS = ("auroc", "auprc", "brier", "log_loss")


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric over both sets of rows."""

    name: str
    title: str
    meaning: str
    better: str
    test: MetricValue
    validation: MetricValue


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split's rows and the share of each label."""

    name: str
    num_rows: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModalityRow:
    """One modality's size, and the share of rows that lack all of it."""

    name: str
    num_features: int
    num_columns: int
    absent: tuple[float, ...]  # per split


@dataclass(frozen=True, slots=True)
class Content:
    """What the template reads."""

    recipe: Recipe
    recipe_text: str
    task: TaskInfo
    notes: tuple[str, ...]
    splits: tuple[SplitRow, ...]
    modalities: tuple[ModalityRow, ...]
    metrics: tuple[MetricRow, ...]
    headline: tuple[MetricRow, ...]
    training: Picture | None
    quality: Picture
    violins: Picture
    max_curves: int
    explanation: DatasetExplanation
    colors: Mapping[str, str]  # expert name -> colour
    samples: tuple[Sample, ...]
    calibration: CalibrationInfo
    selection: str  # the metric that chose the epoch
    best_epoch: int  # from 1
    num_parameters: int
    facts: Mapping[str, str]
    versions: Mapping[str, str]


def build_content(
    checkpoint: Checkpoint, dataset: Dataset, evaluations: Mapping[str, Evaluation], history: list[dict[str, Any]]
) -> Content:
    """Gather and draw."""
    task, recipe, provenance = checkpoint.task, checkpoint.recipe, checkpoint.provenance
    test, experts = evaluations["test"], expert_infos(checkpoint.schema)
    calibration = calibration_info(checkpoint)
    explanation = explain(test.output, task, calibration)
    metrics = _metric_rows(evaluations)
    return Content(
        recipe=recipe,
        recipe_text=json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False),
        task=task,
        notes=dataset.notes,
        splits=_split_rows(dataset),
        modalities=_modality_rows(dataset),
        metrics=metrics,
        headline=tuple(row for row in metrics if row.name in _HEADLINE_METRICS),
        training=draw_training(history, experts, recipe.train.selection, provenance["best_epoch"]),
        quality=draw_quality(test, task),
        violins=draw_experts(explanation, test.explanation, experts),
        max_curves=MAX_CURVES,
        explanation=test.explanation,
        colors=dict(zip((e.name for e in experts), expert_colors(experts), strict=True)),
        samples=choose_samples(ExplainedRows(test, explanation, absent_modalities(dataset.part("test")[0]), task, experts)),
        calibration=calibration,
        selection=metric_title(recipe.train.selection),
        best_epoch=provenance["best_epoch"] + 1,
        num_parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        facts={name.replace("_", " "): _text(value) for name, value in provenance.items() if name not in _TOLD_ELSEWHERE},
        versions={name: str(version) for name, version in provenance.get("versions", {}).items()},
    )


def _metric_rows(evaluations: Mapping[str, Evaluation]) -> tuple[MetricRow, ...]:
    validation = evaluations["validation"].metrics
    return tuple(
        MetricRow(
            name=name,
            title=metric_title(name),
            meaning=_MEANINGS.get(name, ""),
            better="lower" if name in LOWER_IS_BETTER else "higher",
            test=value,
            validation=validation[name],
        )
        for name, value in evaluations["test"].metrics.items()
    )


def _split_rows(dataset: Dataset) -> tuple[SplitRow, ...]:
    num_labels = len(dataset.task.labels)
    counts = {name: np.bincount(dataset.target[rows], minlength=num_labels) for name, rows in dataset.splits.items()}
    return tuple(SplitRow(name, int(n.sum()), tuple((n / n.sum()).tolist())) for name, n in counts.items())


def _modality_rows(dataset: Dataset) -> tuple[ModalityRow, ...]:
    absent = absent_modalities(dataset.arrays)
    return tuple(
        ModalityRow(
            name=modality.name,
            num_features=len(modality.features),
            num_columns=modality.width,
            absent=tuple(float(absent[modality.name][rows].mean()) for rows in dataset.splits.values()),
        )
        for modality in dataset.schema.modalities
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
