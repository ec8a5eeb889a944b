"""A decomposition goes the whole way: its bundle is verified, and what the service tells are the parts that were taught."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.planted_runs import planted_recipe, write_data
from export.bundle import export_bundle, run_material
from export.verify import ATOL
from service.bundle.explanation import contributions, explain
from service.bundle.predictor import Predictor
from training.data.dataset import load_dataset
from training.data.planted import PlantedConfig, generate
from training.objectives.experts import ExpertsObjective, Lesson, explained
from training.run import fit
from training.trainer import Trainer

OVERRIDES = {
    "objective.kind": "decomposition",
    "objective.decomposition.min_steps": 0,
    "train.epochs": 12,
    "train.batch_size": 64,
}


@pytest.mark.slow
def test_served_contributions_are_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an XOR's test rows they explain more than 0.9 of the parts' variance, and synergy decides nearly everywhere."""
    trainers: dict[str, Trainer[Any]] = {}

    def tell(trainer: Trainer[Any], recipe: object) -> None:
        trainers[trainer.stage] = trainer
        list(trainer.epochs())

    monkeypatch.setattr("training.run._tell", tell)
    config = PlantedConfig(kind="xor", num_rows=1200)
    write_data(generate(config, 0), tmp_path)
    recipe = planted_recipe(config, OVERRIDES, seed=0)
    fit(recipe, tmp_path, tmp_path / "run")
    bundle = export_bundle(run_material(tmp_path / "run"), tmp_path / "bundle")
    assert bundle.manifest.parity.max_abs_diff <= ATOL
    dataset = load_dataset(recipe.data, tmp_path, seed=0)
    arrays, _ = dataset.part("test")
    output = Predictor(bundle, provider="cpu").run(arrays)
    objective = trainers["experts"].objective
    assert isinstance(objective, ExpertsObjective)
    lesson: Lesson = objective.teacher([torch.from_numpy(arrays[name]) for name in dataset.schema.names])
    # For two classes a contribution is the difference of what is centred: twice the part.
    served_EBC = torch.from_numpy(contributions(output, bundle.manifest.task)).transpose(0, 1) / 2
    assert explained(served_EBC, lesson.parts_EBC) > 0.9
    assert explained(served_EBC.sum(dim=0), lesson.logits_BC) > 0.9
    synergy = [expert.name for expert in bundle.manifest.experts].index("synergy")
    explanation = explain(output, bundle.manifest.task, bundle.manifest.calibration)
    assert (explanation.dominant == synergy).mean() > 0.95
