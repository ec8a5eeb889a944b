"""Keys that mean nothing are refused, and stored recipes still load."""

from typing import Any

import pytest

from tests.training.small_data import recipe
from training.errors import RecipeError
from training.objectives.config import ObjectiveConfig


@pytest.mark.parametrize(
    ("objective", "told"),
    [({"kind": "paper", "decomposition": {"sum_weight": 1}}, "decomposition is not for kind = paper: leave it out"),
     ({"kind": "decomposition", "decomposition": {"shuffle_rate": 2}}, "objective.decomposition.shuffle_rate: "),
     ({"kind": "other"}, "objective.kind: ")],
)  # fmt: skip
def test_foreign_keys_are_told(objective: dict[str, Any], told: str) -> None:
    """One line that names the key."""
    with pytest.raises(RecipeError) as error:
        recipe({"objective": objective})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("experts", ["single", "synergy_redundancy"])
def test_a_decomposition_needs_all_experts(experts: str) -> None:
    """There must be an expert for every part."""
    with pytest.raises(RecipeError, match=f"objective.kind = decomposition needs model.experts = all, found {experts}"):
        recipe({"objective": {"kind": "decomposition"}, "model.experts": experts})


@pytest.mark.parametrize("objective", [{}, {"interaction_weight": 0.5}, {"kind": "decomposition", "num_perturbed": 1}])
def test_stored_recipes_load(objective: dict[str, Any]) -> None:
    """What a checkpoint writes, all defaults spelled out, reads as it was; and so does one from before the decomposition."""
    config = ObjectiveConfig.model_validate(objective)
    stored = config.model_dump(mode="json")
    assert ObjectiveConfig.model_validate(stored) == config
    del stored["decomposition"]
    assert ObjectiveConfig.model_validate(stored) == config
