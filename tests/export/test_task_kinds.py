"""Every kind of label goes the whole way: a table, a short run, a verified bundle, an answer in the label's own terms."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from export.bundle import export_bundle, run_material
from service.bundle.explanation import explain
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle
from tests.training.small_data import recipe, small_table
from training.checkpoint import load_checkpoint
from training.evaluation import Evaluation
from training.run import fit

LEARN = {"train.epochs": 25, "train.learning_rate": 0.02, "train.ema_decay": 0.9, "train.patience": 25}
BACKBONES: dict[str, dict[str, Any]] = {
    "switchgate": {"num_experts": 4},
    "interpretcc": {},
    "moepp": {"num_experts": 6, "ffn_dim": 8},
    "mult": {},
}


def labelled(folder: Path) -> Path:
    """The small table with a number, three classes and two flags to learn beside its outcome."""
    table = small_table(num_rows=300)
    crea = table.get_column("crea").cast(pl.Float64).fill_null(1.0)
    dead = table.get_column("outcome").cast(pl.Int64)
    days = 40 - 12 * crea.log() + 3 * dead
    stage = (crea > 0.8).cast(pl.Int64) + (crea > 1.3).cast(pl.Int64)
    high = (crea > 1.2).cast(pl.Int64)
    table.with_columns(days.alias("days"), stage.alias("stage"), high.alias("high"), dead.alias("died")).write_csv(
        folder / "table.csv"
    )
    return folder


def trained(folder: Path, changes: dict[str, Any]) -> tuple[dict[str, Evaluation], Bundle]:
    """A run of the small recipe with changes, and its verified bundle."""
    labelled(folder)
    evaluations = fit(recipe(LEARN | {"data.labels": None} | changes), folder, folder / "run")
    return evaluations, export_bundle(run_material(folder / "run"), folder / "bundle")


def test_regression_learns_and_answers_in_the_labels_unit(tmp_path: Path) -> None:
    """Days are predicted in days; contributions start from the training mean and add up to the distance from it."""
    evaluations, bundle = trained(tmp_path, {"data.task": "regression", "data.label": "days"})
    assert evaluations["test"].metrics["r2"].value > 0.4
    manifest = bundle.manifest
    assert manifest.task.training_mean == pytest.approx(40, abs=5)
    assert manifest.calibration.method == "none"
    output = Predictor(bundle).run(manifest.features.encode_many([manifest.example.record]))
    assert 20 < output.prediction[0, 0] < 60
    explanation = explain(output, manifest.task, manifest.calibration)
    distance = output.prediction[0, 0] - manifest.task.training_mean
    assert explanation.contribution.sum() == pytest.approx(distance, abs=1e-3)


def test_multilabel_learns_and_calibrates_each_label(tmp_path: Path) -> None:
    """Two flags are learned together, each with a probability and a calibration of its own."""
    evaluations, bundle = trained(tmp_path, {"data.task": "multilabel", "data.label": ["high", "died"]})
    assert evaluations["test"].metrics["auroc"].value > 0.8
    manifest = bundle.manifest
    assert manifest.task.labels == ("high", "died")
    assert manifest.calibration.method == "Platt scaling per label"
    assert manifest.calibration.scale[0] != manifest.calibration.scale[1]
    assert set(evaluations["test"].metrics) >= {"micro_f1", "macro_f1", "exact_match"}


def test_multiclass_learns(tmp_path: Path) -> None:
    """Three classes are told apart, and the classes' probabilities add up to 1."""
    evaluations, bundle = trained(tmp_path, {"data.task": "multiclass", "data.label": "stage"})
    assert evaluations["test"].metrics["auroc"].value > 0.8
    assert sum(bundle.manifest.example.answer.prediction) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("fusion", BACKBONES)
def test_every_backbone_trains_and_exports(tmp_path: Path, fusion: str) -> None:
    """Chosen by one recipe value, each backbone learns, and its graph answers as the model does."""
    changes = {"model.fusion": fusion, "model.fusion_options": BACKBONES[fusion], "data.labels": ["alive", "dead"]}
    evaluations, bundle = trained(tmp_path, changes | {"train.epochs": 12})
    assert evaluations["test"].metrics["auroc"].value > 0.65
    assert bundle.manifest.parity.max_abs_diff <= bundle.manifest.parity.atol
    assert load_checkpoint(tmp_path / "run").recipe.model.fusion == fusion


def test_regression_metrics_choose_the_epoch(tmp_path: Path) -> None:
    """The task's own metric selects: the smallest validation error, not the largest."""
    evaluations, _ = trained(tmp_path, {"data.task": "regression", "data.label": "days", "train.selection": "mae"})
    history = load_checkpoint(tmp_path / "run").provenance
    assert history["selection"] == "mae"
    assert np.isfinite(evaluations["validation"].metrics["mae"].value)
