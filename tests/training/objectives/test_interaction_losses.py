"""The paper's losses by hand and against the released code's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.objectives.all_losses import all_losses
from training.objectives.interaction_losses import (
    BOUNDED_REGRESSION,
    RELEASED_REGRESSION,
    redundancy_loss,
    synergy_loss,
    uniqueness_loss,
)


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_losses_are_the_released_codes(shared_data: Path, num_modalities: int) -> None:
    """Every expert's interaction loss on the golden outputs equals the released code's to 1e-6."""
    golden = np.load(shared_data / "golden" / "losses.npz")
    case = f"classification_n{num_modalities}"
    found = all_losses(torch.from_numpy(golden[f"{case}_outputs"]))
    np.testing.assert_allclose(found, golden[f"{case}_losses"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("num_modalities", "mean"), [(2, 0.75), (3, 0.8), (4, 5 / 6)])
def test_equal_outputs_cost_the_margin_and_one_similarity(num_modalities: int, mean: float) -> None:
    """Identical passes: triplet 1 (the margin), synergy 1, redundancy 0, so L_int = (n + 1) / (n + 2)."""
    logits_EVBC = torch.randn(num_modalities + 2, 1, 7, 3).expand(-1, num_modalities + 1, -1, -1)
    losses_E = all_losses(logits_EVBC)
    np.testing.assert_allclose(losses_E, [1.0] * num_modalities + [1.0, 0.0], atol=1e-6)
    assert losses_E.mean().item() == pytest.approx(mean, abs=1e-6)


def test_orthogonal_outputs() -> None:
    """Perpendicular logits: synergy 0, redundancy 1; opposite ones: -1 and 2."""
    clean = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    perpendicular = torch.stack([clean, clean.flip(1), clean.flip(1)])
    assert synergy_loss(perpendicular).item() == pytest.approx(0)
    assert redundancy_loss(perpendicular).item() == pytest.approx(1)
    assert synergy_loss(torch.stack([clean, -clean])).item() == pytest.approx(-1)
    assert redundancy_loss(torch.stack([clean, -clean])).item() == pytest.approx(2)


def test_uniqueness_by_hand() -> None:
    """Losing the own modality should move the output, losing another should not: max(|y0 - yj| - |y0 - yi| + 1, 0)."""
    clean, near, far = torch.zeros(1, 2), torch.tensor([[0.3, 0.4]]), torch.tensor([[0.0, 1.2]])
    logits_VBC = torch.stack([clean, far, near, near])
    assert uniqueness_loss(logits_VBC, 0).item() == pytest.approx(0.5 - 1.2 + 1)
    assert uniqueness_loss(logits_VBC, 1).item() == pytest.approx(((1.2 - 0.5 + 1) + 1.0) / 2)
    assert uniqueness_loss(torch.stack([clean, 9 * far, near, near]), 0).item() == 0.0


def test_experts_must_match_modalities() -> None:
    """A wrong number of experts is told with what was expected."""
    with pytest.raises(ValueError, match=r"expected outputs of \(5, 4\) experts and variants, found \(4, 4\)"):
        all_losses(torch.zeros(4, 4, 2, 2))


def test_gradients_flow_through_clean_and_perturbed_passes() -> None:
    """Nothing is detached: the losses have gradients with respect to every pass of every expert."""
    torch.manual_seed(0)
    logits_EVBC = (0.1 * torch.randn(5, 4, 6, 2)).requires_grad_()
    all_losses(logits_EVBC).sum().backward()
    assert logits_EVBC.grad is not None
    assert (logits_EVBC.grad.abs().sum(dim=(2, 3)) > 0).all()


def test_released_regression_losses_equal_the_released_codes(shared_data: Path) -> None:
    """The released variant reproduces the golden regression losses to 1e-6, wrong synergy sign and all."""
    golden = np.load(shared_data / "golden" / "losses.npz")
    found = all_losses(torch.from_numpy(golden["regression_n3_outputs"]), RELEASED_REGRESSION)
    np.testing.assert_allclose(found, golden["regression_n3_losses"], atol=1e-6, rtol=0)


def test_bounded_regression_losses_have_the_right_signs() -> None:
    """Synergy falls when replaced modalities move the output, redundancy when they do not, and none falls below zero."""
    still = torch.zeros(5, 4, 8, 1)
    moved = still.clone()
    moved[:, 1:] = 2.0
    unmoved_E, moved_E = all_losses(still, BOUNDED_REGRESSION), all_losses(moved, BOUNDED_REGRESSION)
    assert unmoved_E[-2] == 1
    assert moved_E[-2] == 0
    assert unmoved_E[-1] == 0
    assert moved_E[-1] == 4
    assert (all_losses(100 * torch.randn(5, 4, 8, 1), BOUNDED_REGRESSION) >= 0).all()


def test_a_uniqueness_expert_of_a_regression_wants_its_own_modality_to_matter() -> None:
    """The loss is smallest when only the expert's own modality moves its output."""
    own, other = torch.zeros(5, 4, 8, 1), torch.zeros(5, 4, 8, 1)
    own[0, 1], other[0, 2] = 3.0, 3.0
    assert all_losses(own, BOUNDED_REGRESSION)[0] == 0
    assert all_losses(other, BOUNDED_REGRESSION)[0] > 1
