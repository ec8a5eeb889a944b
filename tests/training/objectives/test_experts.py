"""Experts and their parts: what the teacher says, and the error of those who learn from it."""

import pytest
import torch
from torch import nn

from tests.training import small_model
from tests.training.objectives.teachers import CONFIG, RULES, teacher
from training.decomposition import decompose
from training.objectives.config import DecompositionConfig
from training.objectives.experts import (
    Answer,
    ExpertsObjective,
    explained,
    limit_dropout,
    matching_error,
    mixture_evidence,
    share_divergence,
    shuffled,
)


def answer(parts: list[float], contributions: list[float], weights: list[float]) -> Answer:
    """Of one row and one output, whose logit is the sum of the parts."""
    parts_EBC = torch.tensor(parts)[:, None, None]
    return Answer(torch.tensor(contributions)[:, None, None], torch.tensor([weights]), parts_EBC, parts_EBC.sum(dim=0))


def test_parts_add_up_to_the_mixture() -> None:
    """Also where a modality is missing; and they are the decomposition of limited evidence, scaled back."""
    taught, inputs = teacher(), small_model.rows(12, missing_rate=0.3)
    inputs[2][:4] = torch.nan
    lesson = taught(inputs)
    torch.testing.assert_close(lesson.parts_EBC.sum(dim=0), lesson.logits_BC, atol=1e-5, rtol=1e-4)
    evidence_BC = RULES.centre(taught.mixture(inputs).logits_BC) - taught.base_rate_C
    torch.testing.assert_close(lesson.logits_BC, evidence_BC)
    told = taught.own(inputs)
    expected = taught.slope_n11 * taught.expectations(told.tokens_BnPD)
    expected[2, :4] = 0
    parts = decompose(RULES.limited(0.5 * lesson.logits_BC), told.own_nBC, expected)
    factor = 0.5 * RULES.limiting_factor(0.5 * lesson.logits_BC)
    torch.testing.assert_close(lesson.parts_EBC[:3] * factor, parts.unique_nBC)
    torch.testing.assert_close(lesson.parts_EBC[3] * factor, parts.synergy_BC)
    assert not lesson.parts_EBC.requires_grad


def test_the_matching_error_by_hand() -> None:
    """Squared errors of each contribution, 4 times that of their sum, 0.1 times the divergence of weights."""
    off = answer([1.0, 1.0], [2.0, 1.5], [0.5, 0.5])
    assert matching_error(off, CONFIG).item() == pytest.approx(1 + 0.25 + 4 * 1.5**2, abs=1e-5)
    torn = answer([3.0, 1.0], [3.0, 1.0], [0.5, 0.5])
    divergence = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert matching_error(torn, CONFIG).item() == pytest.approx(0.1 * divergence.item() * 4 / 5, abs=1e-5)


def test_weights_that_are_shares_cost_nothing() -> None:
    """And rows that say nothing ask for nothing."""
    assert share_divergence(answer([3.0, -1.0], [0.0, 0.0], [0.75, 0.25])).item() == pytest.approx(0, abs=1e-5)
    assert share_divergence(answer([0.0, 0.0], [0.0, 0.0], [0.9, 0.1])).item() == pytest.approx(0, abs=1e-5)


def test_explained_variance() -> None:
    """1 for the same, 0 for the mean, less for worse."""
    wanted = torch.tensor([1.0, 2.0, 3.0])[None, :, None]
    assert explained(wanted, wanted) == 1
    assert explained(torch.full_like(wanted, 2), wanted) == 0
    assert explained(-wanted, wanted) < 0


def test_experts_and_weights_learn_and_nothing_else() -> None:
    """Encoders and the teacher get no gradient."""
    taught, model = teacher(), small_model.model(seed=1)
    model.encoders.requires_grad_(requires_grad=False)
    losses = ExpertsObjective(taught, CONFIG, gate_weight=0.0)(model, small_model.rows(16), torch.zeros(16))
    losses.total.backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"experts", "reweighting"}
    assert all(parameter.grad is None for parameter in taught.parameters())
    assert len(losses.interaction_E) == 0


def test_a_perfect_pupil_is_the_teachers_sum() -> None:
    """The mixture's own contributions add up to its logits, its evidence and the base rate, before anybody learned a part."""
    taught = teacher()
    inputs = small_model.rows(6)
    found = ExpertsObjective(taught, DecompositionConfig(shuffle_rate=0.0), gate_weight=0.0)._answer(taught.mixture, inputs)[0]
    evidence_BC = mixture_evidence(taught.mixture, inputs, RULES, taught.base_rate_C)[1]
    torch.testing.assert_close(found.contributions_EBC.sum(dim=0), evidence_BC + taught.base_rate_C)


def test_rows_trade_places_modality_by_modality() -> None:
    """Rate 0 leaves all as it is; rate 1 moves every modality on its own, and no row is lost."""
    torch.manual_seed(0)
    inputs = [torch.arange(50.0)[:, None], torch.arange(50.0)[:, None]]
    assert all(a is b for a, b in zip(inputs, shuffled(inputs, 0.0), strict=True))
    first, second = shuffled(inputs, 1.0)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sort(dim=0).values, inputs[0])


def test_dropout_is_limited_and_never_raised() -> None:
    """To the largest rate allowed."""
    module = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.05))
    limit_dropout(module, 0.1)
    assert [layer.p for layer in module.children()] == [0.1, 0.05]
