import math

import pytest
import torch

from tests.training.model.fusion_cases import (
    assert_exports,
    assert_rows_are_independent,
    fusion,
    num_parameters,
    tokens,
)
from training.model.fusion.interpretcc import GumbelGate

SETTINGS = [(1.0, 0.5), (0.7, 0.6), (2.0, 0.3)]


@pytest.mark.parametrize("hard", [True, False])
def test_rows_are_independent(hard: bool) -> None:
    """Evaluation draws nothing: the same row has the same answer, in any company."""
    assert_rows_are_independent(fusion("interpretcc", 3, {"hard": hard}))


@pytest.mark.parametrize(("n", "d"), [(2, 8), (5, 6)])
def test_parameter_count(n: int, d: int) -> None:
    """Weights number what the published layer sizes add up to."""
    h, c = d // 2, 3
    wanted = n * (d**2 + d + d + 1) + (n * d * d + d) + (d * h + h) + (h * c + c)
    assert wanted == num_parameters(fusion("interpretcc", n, hidden_dim=d))


@pytest.mark.parametrize(("tau", "threshold"), SETTINGS)
def test_open_probability(tau: float, threshold: float) -> None:
    """The training gate opens as often as the closed form says: 1 - exp(-exp(s - tau logit(threshold)))."""
    torch.manual_seed(0)
    scores = torch.linspace(-3, 2, 11)
    gate = GumbelGate(tau=tau, threshold=threshold, hard=True).train()
    share = gate(scores.expand(20_000, -1)).mean(dim=0)
    wanted = 1 - torch.exp(-torch.exp(scores - tau * math.log(threshold / (1 - threshold))))
    torch.testing.assert_close(share, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize(("tau", "threshold"), SETTINGS)
def test_evaluation_is_the_majority_of_training(tau: float, threshold: float) -> None:
    """The evaluation gate is open exactly where the training gate opens more often than not."""
    torch.manual_seed(0)
    scores = torch.linspace(-3, 2, 26)
    gate = GumbelGate(tau=tau, threshold=threshold, hard=True)
    share = gate.train()(scores.expand(20_000, -1)).mean(dim=0)
    decided = (share - 0.5).abs() > 0.02
    opened = gate.eval()(scores)
    assert decided.sum() > 20
    assert {0.0, 1.0} == set(opened.tolist())
    assert torch.equal(opened[decided], (share[decided] >= 0.5).float())


@pytest.mark.parametrize(("tau", "threshold"), SETTINGS)
def test_soft_evaluation_is_the_median_of_training(tau: float, threshold: float) -> None:
    """A soft gate evaluates to the median of what training draws."""
    torch.manual_seed(0)
    scores = torch.linspace(-3, 2, 11)
    gate = GumbelGate(tau=tau, threshold=threshold, hard=False)
    median = gate.train()(scores.expand(20_001, -1)).median(dim=0).values
    torch.testing.assert_close(gate.eval()(scores), median, rtol=0, atol=0.02)


def test_hard_gates_pass_the_soft_gradient() -> None:
    """A hard gate is exactly 0 or 1 going forward and has the soft gate's slope going back."""
    score = torch.linspace(-2, 2, 9).requires_grad_()
    gate = GumbelGate(tau=0.5, threshold=0.5, hard=True).train()
    torch.manual_seed(3)
    opened = gate(score)
    (slope,) = torch.autograd.grad(opened.sum(), score)
    torch.manual_seed(3)
    soft = GumbelGate(tau=0.5, threshold=0.5, hard=False).train()(score)
    (soft_slope,) = torch.autograd.grad(soft.sum(), score)
    assert {0.0, 1.0} == set(opened.tolist())
    assert torch.equal(soft_slope, slope)


def test_a_closed_gate_hides_its_modality() -> None:
    """With a gate forced shut, that modality's tokens do not change the answer; open, they do."""
    model, x = fusion("interpretcc", 2).eval(), tokens(2, 8)
    changed = x.clone()
    changed[:, 1] += 1.0
    for bias, same in ((-100.0, True), (100.0, False)):
        with torch.no_grad():
            for score in model.scores:
                score[2].bias.fill_(100.0)
            model.scores[1][2].bias.fill_(bias)
            assert same is torch.equal(model(x).logits_BC, model(changed).logits_BC)


def test_there_is_no_gate_loss() -> None:
    """The gate loss is zero in both modes."""
    model, x = fusion("interpretcc", 3), tokens(3, 4)
    assert [model.train(mode)(x).gate_loss.item() for mode in (True, False)] == [0.0, 0.0]


def test_exports() -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("interpretcc", 3))
