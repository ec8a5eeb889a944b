"""The paper's baselines, chosen by three recipe values, go through the one trainer like every other model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small_data import ALL_MODALITIES, recipe, write_data
from training.checkpoint import load_checkpoint
from training.data.dataset import load_dataset
from training.evaluation import Evaluation
from training.model.fusion import FUSIONS
from training.recipe import load_recipe
from training.run import fit, make_trainer
from training.sweep import read_variants

ALONE = {"model.experts": "single", "objective.interaction_weight": 0}
LEARN = {"train.epochs": 12, "train.learning_rate": 0.02, "train.ema_decay": 0.9, "train.num_bootstraps": 0}
BASELINES = ("transformer", "early", "late", "low_rank_tensor")


def baseline(fusion: str, changes: dict[str, Any] | None = None) -> Any:
    """The small recipe with one fusion and no interaction experts."""
    return recipe(LEARN | ALONE | {"model.fusion": fusion} | (changes or {}), modalities=ALL_MODALITIES)


def trained(fusion: str, folder: Path) -> dict[str, Evaluation]:
    """A finished run in folder/run, on 300 rows whose outcome is planted in labs and codes."""
    return fit(baseline(fusion), write_data(folder, num_rows=300), folder / "run")


@pytest.mark.parametrize("fusion", BASELINES)
def test_every_baseline_learns_what_is_planted(fusion: str, tmp_path: Path) -> None:
    """Far above chance on rows it has not seen, with one expert and no interaction loss."""
    evaluations = trained(fusion, tmp_path)
    assert evaluations["test"].metrics["auroc"].value > 0.8
    checkpoint = load_checkpoint(tmp_path / "run")
    assert [(role.name, role.kind) for role in checkpoint.model.roles] == [("fusion", "fusion")]
    assert checkpoint.recipe.model.fusion == fusion
    assert len(checkpoint.model.experts) == 1


def test_the_shipped_variants_are_these_baselines() -> None:
    """The file that a sweep takes names each of them, with the three values that make one."""
    recipes = Path(__file__).parents[2] / "training" / "recipes"
    variants = [load_recipe(recipes / "support2.toml", v.overrides) for v in read_variants(recipes / "variants/baselines.toml")]
    assert [variant.model.fusion for variant in variants] == ["early", "late", "low_rank_tensor"]
    assert {(variant.model.experts, variant.objective.interaction_weight) for variant in variants} == {("single", 0)}
    assert {variant.model.fusion for variant in variants} < set(FUSIONS)


def test_low_rank_factors_are_trained_and_saved(tmp_path: Path) -> None:
    """Every rank of every modality's factors leaves its start, and the file on disk holds where training took it."""
    folder = write_data(tmp_path, num_rows=300)
    wanted = baseline("low_rank_tensor", {"train.epochs": 2, "train.ema_decay": 0.0})
    dataset = load_dataset(wanted.data, folder, seed=0)
    start = make_trainer(wanted, dataset, tmp_path).state.model.state_dict()
    fit(wanted, folder, tmp_path / "run")
    document = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    rebuilt = load_checkpoint(tmp_path / "run").model.state_dict()
    for name in ("factors", "factors_bias", "rank_weights", "bias"):
        key = f"experts.0.product.{name}"
        assert (document["weights"][key] != start[key]).float().mean() > 0.99, name
        assert torch.equal(document["weights"][key], rebuilt[key])
    moved_nR = (rebuilt["experts.0.product.factors"] - start["experts.0.product.factors"]).abs().amax(dim=(1, 3))
    assert moved_nR.shape == (4, 32)
    assert moved_nR.min() > 1e-3


def test_the_simple_fusions_are_backbones_of_i2moe_too(tmp_path: Path) -> None:
    """Nothing keeps them from being what the interaction experts are made of."""
    folder = write_data(tmp_path)
    wanted = recipe({"model.fusion": "low_rank_tensor", "train.epochs": 1}, modalities=ALL_MODALITIES)
    fit(wanted, folder, tmp_path / "run")
    assert len(load_checkpoint(tmp_path / "run").model.experts) == 6
