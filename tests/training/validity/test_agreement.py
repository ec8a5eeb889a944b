"""Explanations of games that are known: u of each modality alone, r said by every one, s said by all together."""

from typing import Any

import numpy as np
import pytest

from service.bundle.manifest import ExpertInfo
from service.bundle.validity import ExplanationValidity
from training.validity.attribution import attribute
from training.validity.config import ValidityConfig
from training.validity.estimates import Floats
from training.validity.games import interactions, shapley_values
from training.validity.judge import compare
from training.validity.randomised import randomised_figures
from training.validity.resampled import resampled_figures

CONFIG = ValidityConfig(num_bootstraps=50)
NUM_ROWS = 200


def experts(num: int) -> tuple[ExpertInfo, ...]:
    unique = [ExpertInfo(name=f"unique:m{i}", kind="uniqueness", modality=f"m{i}") for i in range(num)]
    return (*unique, ExpertInfo(name="synergy", kind="synergy"), ExpertInfo(name="redundancy", kind="redundancy"))


def known_games(num: int, *, seed: int = 0) -> tuple[Floats, Floats]:
    """Games (2^n, N), and the contributions (N, n + 2) of an explanation that is exactly right about them."""
    contribution = np.random.default_rng(seed).normal(size=(NUM_ROWS, num + 2))
    holds = np.arange(1 << num)[:, None] >> np.arange(num) & 1
    values = holds @ contribution[:, :num].T
    values[-1] += contribution[:, num]
    values[1:] += contribution[:, num + 1]
    return values, contribution


def checked(values: Floats, contribution: Floats, num: int) -> ExplanationValidity:
    figures: dict[str, Any] = compare(values, contribution, experts(num), [f"m{i}" for i in range(num)], CONFIG)
    return ExplanationValidity(split="test", num_rows=NUM_ROWS, hidden_by="learned token", **figures)


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6])
def test_a_right_explanation_is_perfect(num: int) -> None:
    """Attributions are Shapley values, synergy less overlap is the interaction, and no order does better."""
    values, contribution = known_games(num)
    np.testing.assert_allclose(
        attribute(contribution, experts(num), [f"m{i}" for i in range(num)]), shapley_values(values), atol=1e-9
    )
    np.testing.assert_allclose(interactions(values), contribution[:, num] - (num - 1) * contribution[:, num + 1], atol=1e-9)
    found = checked(values, contribution, num)
    assert found.deletion
    assert found.insertion
    assert found.shapley
    assert found.interactions
    for part in (found.deletion.score, found.insertion.score, found.shapley.spearman, found.shapley.pearson):
        assert part is not None
        assert part.value == pytest.approx(1.0)
    assert found.shapley.top.value == found.shapley.sign.value == 1.0
    expected, synergy, redundancy = found.interactions.expected, found.interactions.synergy, found.interactions.redundancy
    assert expected
    assert synergy
    assert redundancy
    assert expected.value == pytest.approx(1.0)
    assert synergy.value > 0.1
    assert redundancy.value > 0.5
    assert len(found.interactions.pairs) == num * (num - 1) // 2


def test_a_wrong_explanation_is_told() -> None:
    """The same contributions under each other's names: as good as chance or worse, and the wrong expert follows nothing."""
    values, contribution = known_games(3)
    found = checked(values, contribution[:, [1, 2, 0, 4, 3]], 3)
    assert found.deletion
    assert found.insertion
    assert found.shapley
    assert found.interactions
    for part in (found.deletion.score, found.insertion.score, found.shapley.spearman):
        assert part is not None
        assert part.value < 0.2
    assert found.shapley.pearson is not None
    assert found.shapley.pearson.value < 0.4  # what is shared among all modalities agrees whoever has the rest
    assert found.shapley.top.value < 0.5
    assert found.interactions.synergy
    assert found.interactions.redundancy
    assert found.interactions.synergy.value < 0
    assert found.interactions.redundancy.value < 0


def test_explanations_without_uniqueness_experts_rank_nothing() -> None:
    """The ablation's two experts say how much is shared, not whose it is; that is told."""
    values, contribution = known_games(3)
    figures = compare(values, contribution[:, 3:], experts(3)[3:], ["m0", "m1", "m2"], CONFIG)
    assert set(figures) == {"interactions", "notes"}
    assert figures["interactions"].expected.value == pytest.approx(1.0)
    assert "rank none" in figures["notes"][0]


def test_contributions_that_never_vary_have_no_correlation() -> None:
    """None, where a number would be rounding."""
    found = checked(np.ones((8, NUM_ROWS)), np.zeros((NUM_ROWS, 5)), 3)
    assert found.deletion
    assert found.shapley
    assert found.interactions
    assert (found.deletion.score, found.shapley.spearman, found.interactions.share, found.interactions.synergy) == (None,) * 4


def test_random_models_are_unlike_and_the_model_like_itself() -> None:
    """Independent contributions: about 0. The same contributions: 1. No ranks: None."""
    _, contribution = known_games(3)
    random = [known_games(3, seed=seed)[1] for seed in range(1, 11)]
    found, same = randomised_figures(contribution, random), randomised_figures(contribution, [contribution] * 3)
    assert found is not None
    assert abs(found.spearman.value) < 0.05
    assert found.num_models == 10
    assert same is not None
    assert same.spearman.value == pytest.approx(1.0)
    assert randomised_figures(contribution, [np.zeros_like(contribution)] * 3) is None


def test_resampling_says_what_depends_on_the_rows() -> None:
    """A clear leader always stays first; two that are level change places; intervals hold the means."""
    generator = np.random.default_rng(0)
    noise = 0.1 * generator.random((300, 4))
    clear = resampled_figures(noise + np.array([0.5, 0.1, 0.3, 0.0]), experts(2), CONFIG)
    level = resampled_figures(noise, experts(2), CONFIG)
    assert clear
    assert level
    assert (clear.first, clear.first_stays, clear.order_stays) == ("unique:m0", 1.0, 1.0)
    assert level.first_stays < 0.95
    for expert in clear.experts:
        assert expert.share.low is not None
        assert expert.share.high is not None
        assert expert.share.low < expert.share.value < expert.share.high
    assert resampled_figures(noise, experts(2), ValidityConfig(num_bootstraps=0)) is None
