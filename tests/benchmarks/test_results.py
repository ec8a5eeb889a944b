"""The results program: which variants run, what an interval is, what is compared with what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import classical, results
from benchmarks.classical import MODELS
from tests.training.small_data import TWO_MODALITIES, recipe, write_data
from training.data.dataset import Dataset, load_dataset
from training.errors import RunError
from training.tasks import Classification

RECIPE = Path("training/recipes/support2.toml")
VARIANTS = RECIPE.parent / "variants"


def document(value: float, *, experts: tuple[str, ...] = ("unique:labs", "synergy")) -> dict[str, Any]:
    """A run's metrics.json, as far as the tables look."""
    spread = {"mean": 0.5}
    explained = [{"name": e, "weight": spread, "contribution_share": spread, "dominant_rate": 0.25} for e in experts]
    agreement = {"agree_correct": 0.5, "agree_wrong": 0.1, "disagree_correct": 0.2, "disagree_wrong": 0.2}
    return {
        "splits": {
            "test": {"metrics": {"auroc": {"value": value}}, "explanation": {"experts": explained, "agreement": agreement}}
        },
        "provenance": {"num_rows": {"train": 60, "validation": 20, "test": 20}, "training_seconds": 3.0},
    }


def test_a_variant_that_is_the_same_recipe_runs_once() -> None:
    """The ablations' I2MoE is the backbones' "I2MoE transformer", and "single expert" its vanilla one: the first name stays."""
    files = [VARIANTS / "backbones.toml", VARIANTS / "ablations.toml"]
    names = [results.name_of(setting) for setting in results.settings(files, "", RECIPE, [])]
    assert "I2MoE transformer" in names
    assert not {"I2MoE", "single expert"} & set(names)
    only = [results.name_of(setting) for setting in results.settings(files, "switchgate", RECIPE, [])]
    assert only == ["I2MoE switchgate", "vanilla switchgate"]


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    """Three splits, test 20 rows to train 60: (1/3 + 1/3) s^2, and t of two degrees of freedom, 4.3027."""
    half, p = results.interval(np.array([0.01, 0.02, 0.03]), [document(0.0)])
    assert half == pytest.approx(4.302653 * np.sqrt(2 / 3 * 0.01**2), rel=1e-5)
    assert p == pytest.approx(0.134, abs=5e-3)
    assert results.interval(np.zeros(3), [document(0.0)]) == (0.0, 1.0)


def test_what_is_compared() -> None:
    """Each I2MoE with its own backbone, and all others with the reference, once."""
    names = ["I2MoE transformer", "I2MoE moepp", "vanilla transformer", "vanilla moepp", "LightGBM"]
    found = results.pairs(names, "I2MoE transformer")
    assert found[:2] == [("I2MoE transformer", "vanilla transformer"), ("I2MoE moepp", "vanilla moepp")]
    assert sorted(second for first, second in found[2:]) == ["I2MoE moepp", "LightGBM", "vanilla moepp"]


def test_matching_is_told_of_those_that_were_given_parts() -> None:
    """The mean over seeds; nothing where no model was given any."""
    parts = [{"r2_contributions": 0.7, "r2_sum": 0.9}, {"r2_contributions": 0.9, "r2_sum": 1.0}]
    given = [document(0.7) | {"provenance": {"decomposition": part}} for part in parts]
    assert "| I2MoE | 0.800 | 0.950 |" in results.matching_table({"I2MoE": given, "published": [document(0.7)]})
    assert results.matching_table({"published": [document(0.7)]}) == ""


def test_tables_say_means_and_leave_out_models_without_experts() -> None:
    """A row per model; experts and agreement only where there are experts to compare."""
    found = {"I2MoE": [document(0.7), document(0.8)], "vanilla": [document(0.6, experts=("fusion",))] * 2}
    assert "| I2MoE | 0.7500 ± 0.0707 | 3 |" in results.metrics_table(found, ["auroc"])
    assert "| I2MoE | synergy | 0.500 | 0.500 | 0.250 |" in results.experts_table(found)
    assert "vanilla" not in results.experts_table(found)
    assert "| I2MoE | 0.500 | 0.100 | 0.200 | 0.200 |" in results.agreement_table(found)
    json.dumps(results.differences(found, "auroc", "I2MoE"))


@pytest.mark.parametrize("name", list(MODELS))
def test_classical_models_learn_what_is_planted(name: str, tmp_path: Path) -> None:
    """Numbers and categories with gaps; well above chance on rows they have not seen."""
    write_data(tmp_path, num_rows=600)
    dataset = load_dataset(recipe(modalities=TWO_MODALITIES).data, tmp_path, seed=0)
    prediction = MODELS[name](dataset, 0)
    _, target = dataset.part("test")
    np.testing.assert_allclose(prediction.sum(axis=1), 1, rtol=1e-5)
    assert Classification.metrics["auroc"](prediction, target, dataset.task) > 0.6


def test_classical_results_of_other_rows_are_not_taken_for_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is not run again, and a folder whose recipe was another is refused."""
    ran: list[int] = []

    def model(dataset: Dataset, seed: int) -> np.ndarray:
        ran.append(seed)
        return np.full((len(dataset.splits["test"]), 2), 0.5)

    monkeypatch.setattr(classical, "MODELS", {"coin": model})
    results.run_classical(RECIPE, [0, 1], tmp_path, [])
    results.run_classical(RECIPE, [0, 1], tmp_path, [])
    assert ran == [0, 1]
    with pytest.raises(RunError, match="holds a finished run of another recipe"):
        results.run_classical(RECIPE, [0], tmp_path, ["data.split.test=0.2"])
