"""Everything the page says, gathered from a run; the template only lays it out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.bundle.explanation import explain
from service.bundle.manifest import CalibrationInfo, DatasetExplanation, TaskInfo
from service.bundle.validity import ExplanationValidity
from training.checkpoint import Checkpoint
from training.data.dataset import Dataset
from training.data.split import Rows
from training.evaluation import Evaluation, calibration_info
from training.recipe import Recipe
from training.report.curves import MAX_CURVES
from training.report.figures import draw_experts, draw_quality, draw_training
from training.report.metrics import MetricRow, headline, metric_rows, metric_title
from training.report.samples import ExplainedRows, Sample, absent_modalities, choose_samples
from training.report.style import Picture, expert_colors
from training.report.trust import TrustRow, draw_orders, trust_rows
from training.report.uncertainty import UncertaintyContent, tell_uncertainty
from training.tasks.metrics import true_labels
from training.uncertainty.assessment import Assessment

_TOLD_ELSEWHERE = frozenset({"num_rows", "notes", "best_epoch", "versions"})


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split's rows and target."""

    name: str
    num_rows: int
    target: tuple[str, ...]  # under `target_heads`


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
    target_heads: tuple[str, ...]
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
    validity: ExplanationValidity | None  # None: explanations were not checked
    trust: tuple[TrustRow, ...]
    orders: Picture | None
    samples: tuple[Sample, ...]
    calibration: CalibrationInfo
    selection: str  # the metric that chose the epoch
    best_epoch: int  # from 1
    num_parameters: int
    decomposition: Mapping[str, Any]  # the figures that a decomposition rests on; empty for the paper's objective
    facts: Mapping[str, str]
    versions: Mapping[str, str]
    uncertainty: UncertaintyContent | None


def build_content(
    checkpoint: Checkpoint,
    dataset: Dataset,
    evaluations: Mapping[str, Evaluation],
    history: list[dict[str, Any]],
    uncertainty: Assessment | None = None,
) -> Content:
    """Gather and draw."""
    task, recipe, provenance = checkpoint.task, checkpoint.recipe, checkpoint.provenance
    test, experts = evaluations["test"], checkpoint.model.roles
    calibration = calibration_info(checkpoint)
    explanation = explain(test.output, task, calibration)
    metrics = metric_rows(test.metrics, evaluations["validation"].metrics)
    return Content(
        recipe=recipe,
        recipe_text=json.dumps(recipe.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False),
        task=task,
        notes=dataset.notes,
        target_heads=("mean", "standard deviation") if task.kind == "regression" else task.labels,
        splits=_split_rows(dataset),
        modalities=_modality_rows(dataset),
        metrics=metrics,
        headline=headline(metrics),
        training=draw_training(history, experts, provenance["selection"], provenance["best_epoch"]),
        quality=draw_quality(test, task),
        violins=draw_experts(explanation, test.explanation, experts),
        max_curves=MAX_CURVES,
        explanation=test.explanation,
        colors=dict(zip((e.name for e in experts), expert_colors(experts), strict=True)),
        validity=test.validity,
        trust=trust_rows(test.validity, len(checkpoint.schema.names)) if test.validity else (),
        orders=_draw_orders(test.validity),
        samples=choose_samples(ExplainedRows(test, explanation, absent_modalities(dataset.part("test")[0]), task, experts)),
        calibration=calibration,
        selection=metric_title(provenance["selection"]),
        best_epoch=provenance["best_epoch"] + 1,
        num_parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        decomposition=provenance.get("decomposition", {}),
        facts={name.replace("_", " "): _text(value) for name, value in provenance.items() if name not in _TOLD_ELSEWHERE},
        versions={name: str(version) for name, version in provenance.get("versions", {}).items()},
        uncertainty=None if uncertainty is None else tell_uncertainty(uncertainty, task),
    )


def _draw_orders(validity: ExplanationValidity | None) -> Picture | None:
    if validity is None or validity.deletion is None or validity.insertion is None:
        return None
    return draw_orders(validity.deletion, validity.insertion)


def _split_rows(dataset: Dataset) -> tuple[SplitRow, ...]:
    return tuple(SplitRow(name, len(rows), _target_figures(dataset, rows)) for name, rows in dataset.splits.items())


def _target_figures(dataset: Dataset, rows: Rows) -> tuple[str, ...]:
    target = dataset.target[rows]
    if dataset.task.kind == "regression":
        return (f"{target.mean():.3f}", f"{target.std():.3f}")
    return tuple(f"{100 * share:.1f} %" for share in true_labels(target, dataset.task).mean(axis=0))


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
