"""The stages of a decomposition: what they leave, how they resume, and that planted interactions are read rightly."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.planted_runs import train_once
from tests.training.small_data import ALL_MODALITIES, recipe, write_data
from training.checkpoint import load_checkpoint
from training.data.dataset import Dataset, load_dataset
from training.data.planted import PlantedConfig
from training.recipe import Recipe
from training.run import fit, make_trainer
from training.stages import STAGES, Trained, train_stages
from training.trainer import Trainer

SHORT: dict[str, Any] = {"kind": "decomposition", "decomposition": {"min_steps": 0}}
DECOMPOSITION: dict[str, Any] = {"objective": SHORT}


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(recipe().data, write_data(tmp_path_factory.mktemp("data")), seed=0)


def run_stages(run_recipe: Recipe, dataset: Dataset, run: Path, *, stop_in: str | None = None) -> Trained:
    """All stages, or until one epoch of `stop_in` is done; goes on where an earlier call stopped."""
    run.mkdir(exist_ok=True)

    def tell(trainer: Trainer[Any]) -> None:
        for _ in trainer.epochs():
            if trainer.stage == stop_in:
                raise StoppedError

    first = make_trainer(run_recipe, dataset, run)
    first.resume()
    return train_stages(first, run_recipe, dataset, run, tell)


@pytest.fixture(scope="module")
def straight(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Never stopped."""
    return run_stages(recipe(DECOMPOSITION), dataset, tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_continues_in_its_stage(stage: str, straight: Trained, dataset: Dataset, tmp_path: Path) -> None:
    """Stopped after the first of two epochs of any stage: the same weights, histories and figures, bit for bit."""
    with pytest.raises(StoppedError):
        run_stages(recipe(DECOMPOSITION), dataset, tmp_path, stop_in=stage)
    torch.rand(7)  # whatever happens in between
    resumed = run_stages(recipe(DECOMPOSITION), dataset, tmp_path)
    wanted, found = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert resumed.histories == straight.histories
    assert resumed.decomposition == straight.decomposition


def test_each_stage_tells_its_own_figures(straight: Trained) -> None:
    """Every stage has its epochs; the modalities' losses are named; the figures are those of the best epoch."""
    assert tuple(straight.histories) == STAGES
    assert {len(history) for history in straight.histories.values()} == {2}
    assert set(straight.histories["modalities"][0]["validation"]) == {"task_loss", "labs", "person"}
    assert list(straight.histories["expectations"][0]["interaction"]) == ["labs", "person"]
    assert set(straight.decomposition) == {"own_scale", "expected_slope", "mixture_scale", "r2_contributions", "r2_sum"}
    errors = [epoch["validation"]["matching_error"] for epoch in straight.histories["experts"]]
    best = straight.histories["experts"][int(np.argmin(errors))]["validation"]
    assert straight.decomposition["r2_sum"] == round(best["r2_sum"], 4)


def test_experts_begin_as_the_mixture_and_leave_its_encoders(dataset: Dataset, tmp_path: Path) -> None:
    """The model's encoders are the first stage's best ones; experts and reweighting have moved."""
    best: dict[str, torch.Tensor] = {}

    def tell(trainer: Trainer[Any]) -> None:
        list(trainer.epochs())
        if trainer.stage == "task":
            best.update(trainer.best_model().state_dict())

    first = make_trainer(recipe(DECOMPOSITION), dataset, tmp_path)
    found = train_stages(first, recipe(DECOMPOSITION), dataset, tmp_path, tell).model.state_dict()
    assert all(torch.equal(found[name], best[name]) for name in best if name.startswith("encoders."))
    assert not any(torch.equal(found[name], best[name]) for name in best if name.endswith("head.weight"))


def test_the_first_stage_is_the_published_training(straight: Trained, dataset: Dataset, tmp_path: Path) -> None:
    """Its epochs are those of kind = paper with the same values, to the bit: dividing the evidence costs no accuracy."""
    alone = run_stages(recipe({"objective": {"kind": "paper"}}), dataset, tmp_path)
    assert straight.histories["task"] == alone.histories["task"]


def test_the_experts_have_steps_enough(straight: Trained, dataset: Dataset, tmp_path: Path) -> None:
    """As many whole epochs as make `min_steps`, though the recipe has two; the other stages keep to the recipe."""
    steps = math.ceil(len(dataset.splits["train"]) / recipe().train.batch_size)
    enough = SHORT | {"decomposition": {"min_steps": 4 * steps - 1}}
    trained = run_stages(recipe({"objective": enough, "train.patience": 9}), dataset, tmp_path)
    assert [len(trained.histories[stage]) for stage in STAGES] == [2, 2, 2, 4]
    assert len(straight.histories["experts"]) == 2


def test_a_whole_run_leaves_its_four_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No state of any stage stays; metrics.json tells every stage, the report what the figures mean, progress the stage."""
    write_data(tmp_path)
    fit(recipe(DECOMPOSITION | {"train.num_bootstraps": 0}, modalities=ALL_MODALITIES), tmp_path, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "checkpoint.pt",
        "metrics.json",
        "report.html",
        "recipe.json",
        "explanations.npz",
    }
    document = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert tuple(document["stages"]) == STAGES[1:]
    assert set(document["provenance"]["decomposition"]["own_scale"]) == set(ALL_MODALITIES)
    assert "This is the first of four stages" in (tmp_path / "run" / "report.html").read_text()
    matched = document["provenance"]["decomposition"]
    validity = document["splits"]["test"]["validity"]
    assert validity["objective"] == "decomposition"
    assert validity["matching"] == {"contributions": matched["r2_contributions"], "whole": matched["r2_sum"]}
    told = capsys.readouterr().err
    assert [f"{stage}: epoch 2/2" in told for stage in STAGES] == [True] * 4
    assert load_checkpoint(tmp_path / "run").recipe.objective.kind == "decomposition"


LABELS = {"data.task": "multiclass", "data.label": "class", "data.labels": None}
SEVERAL = {"data.task": "multilabel", "data.label": ["one", "two"], "data.labels": None}
NUMBER = {"data.task": "regression", "data.label": "age", "data.labels": None}


@pytest.mark.parametrize(
    "changes",
    [
        LABELS | {"objective": SHORT | {"class_weights": "balanced", "label_smoothing": 0.1}},
        SEVERAL | {"objective": SHORT | {"class_weights": "balanced"}},
        NUMBER | DECOMPOSITION,
        DECOMPOSITION | {"train.precision": "bf16", "train.accumulate": 3, "model.fusion": "switchgate"},
    ],
    ids=["multiclass", "multilabel", "regression", "bf16"],
)
def test_every_kind_of_training_has_stages(changes: dict[str, Any], tmp_path: Path) -> None:
    """Several classes or labels with weights, numbers, half precision in micro-batches with gates: finite figures throughout."""
    write_data(tmp_path)
    table = pl.read_csv(tmp_path / "table.csv")
    numbers = range(len(table))
    labels = {"class": [f"c{i % 3}" for i in numbers], "one": [i % 2 for i in numbers], "two": [int(i % 3 == 0) for i in numbers]}
    table.with_columns(pl.Series(name, values) for name, values in labels.items()).write_csv(tmp_path / "table.csv")
    modalities = {
        "labs": {"numeric": ["crea", "sod"]},
        "person": {"categorical": ["sex", "ward"]},
        "signal": {"array": "signal.npy"},
    }
    changed = recipe(changes, modalities=modalities)
    trained = run_stages(changed, load_dataset(changed.data, tmp_path, seed=0), tmp_path / "run")
    assert np.isfinite([epoch["loss"] for history in trained.histories.values() for epoch in history]).all()
    assert np.isfinite([trained.decomposition["r2_sum"], trained.decomposition["r2_contributions"]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unique:m2", "redundancy", "xor"])
def test_planted_interactions_are_read_rightly(kind: str) -> None:
    """The true expert has most of the contribution on nearly every row of easy data, and the model answers rightly."""
    config = PlantedConfig(kind=kind, num_rows=1200)
    overrides = {"objective.decomposition.min_steps": 0, "train.epochs": 12, "train.batch_size": 64}
    run = train_once(config, overrides, seed=0)
    true_share = run.explanation.share[:, run.experts.index(config.whole)]
    assert run.metrics["accuracy"] > 0.95
    assert true_share.mean() > 0.7
    assert (true_share > 0.5).mean() > 0.9
