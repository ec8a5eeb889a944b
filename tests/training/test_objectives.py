import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training import small_model
from training.model.masking import zero_vector
from training.model.mixture import I2MoE
from training.objectives import (
    ObjectiveConfig,
    PaperObjective,
    bounded_regression_losses,
    interaction_losses,
    redundancy_loss,
    released_regression_losses,
    synergy_loss,
    uniqueness_loss,
)
from training.tasks import make_task

TASK = make_task(small_model.TASK)


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_losses_are_the_released_codes(shared_data: Path, num_modalities: int) -> None:
    """Every expert's interaction loss on the golden outputs equals the released code's to 1e-6."""
    golden = np.load(shared_data / "golden" / "losses.npz")
    case = f"classification_n{num_modalities}"
    found = interaction_losses(torch.from_numpy(golden[f"{case}_outputs"]))
    np.testing.assert_allclose(found, golden[f"{case}_losses"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("num_modalities", "mean"), [(2, 0.75), (3, 0.8), (4, 5 / 6)])
def test_equal_outputs_cost_the_margin_and_one_similarity(num_modalities: int, mean: float) -> None:
    """Identical passes: triplet 1 (the margin), synergy 1, redundancy 0, so L_int = (n + 1) / (n + 2)."""
    logits_EVBC = torch.randn(num_modalities + 2, 1, 7, 3).expand(-1, num_modalities + 1, -1, -1)
    losses_E = interaction_losses(logits_EVBC)
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
    """A wrong number of experts is told with both numbers."""
    with pytest.raises(ValueError, match="3 modalities need 5 experts, found 4"):
        interaction_losses(torch.zeros(4, 4, 2, 2))


def gradients(loss: Tensor, model: I2MoE) -> dict[str, float]:
    """The absolute gradient of every parameter that gets one."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.abs().sum().item() for name, p in model.named_parameters() if p.grad is not None}


def test_interaction_losses_reach_encoders_and_their_own_expert() -> None:
    """Each expert's loss moves that expert and every encoder, and neither other experts nor the reweighting."""
    model = small_model.model()
    inputs = small_model.rows(16)
    for expert in range(5):
        torch.manual_seed(0)
        losses_E = interaction_losses(model.run_perturbed(model.embed(inputs), torch.randn_like).logits)
        reached = {name for name, size in gradients(losses_E[expert], model).items() if size > 0}
        assert f"experts.{expert}.head.weight" in reached
        assert all(any(name.startswith(f"encoders.{i}.") for name in reached) for i in range(3))
        assert not any(name.startswith(f"experts.{other}.") for name in reached for other in range(5) if other != expert)
        assert not any(name.startswith("reweighting") for name in reached)


def test_gradients_flow_through_clean_and_perturbed_passes() -> None:
    """Nothing is detached: the losses have gradients with respect to every pass of every expert."""
    torch.manual_seed(0)
    logits_EVBC = (0.1 * torch.randn(5, 4, 6, 2)).requires_grad_()
    interaction_losses(logits_EVBC).sum().backward()
    assert logits_EVBC.grad is not None
    assert (logits_EVBC.grad.abs().sum(dim=(2, 3)) > 0).all()


def objective(**changes: object) -> PaperObjective:
    return PaperObjective(ObjectiveConfig.model_validate(changes), TASK)


def test_total_is_task_plus_weighted_mean_interaction() -> None:
    """L = L_task + interaction_weight x mean of the experts' losses, and the task loss is that of the mixture."""
    model, inputs, target = small_model.model(), small_model.rows(8), torch.arange(8) % 2
    losses = objective(interaction_weight=0.3, masking="zero")(model, inputs, target)
    logits = model(inputs).logits_BC
    wanted_E = interaction_losses(model.run_perturbed(model.embed(inputs), zero_vector).logits)
    assert losses.task.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), abs=1e-6)
    torch.testing.assert_close(losses.interaction_E, wanted_E.detach())
    assert losses.total.item() == pytest.approx(losses.task.item() + 0.3 * wanted_E.mean().item(), abs=1e-6)


def test_weight_zero_trains_on_the_task_alone() -> None:
    """Without interaction losses no perturbed pass is made and the total is the task loss."""
    model, inputs, target = small_model.model(), small_model.rows(8), torch.arange(8) % 2
    losses = objective(interaction_weight=0)(model, inputs, target)
    assert losses.total.item() == losses.task.item()
    assert len(losses.interaction_E) == 0


def test_class_weights_and_smoothing_act_on_the_task_loss() -> None:
    """The weighted mean of the class losses, and the smoothed target, as torch defines them."""
    model, inputs, target = small_model.model(), small_model.rows(8), torch.arange(8) % 2
    logits = model(inputs).logits_BC.detach()
    weights = torch.tensor([0.25, 0.75])
    weighted = PaperObjective(ObjectiveConfig(interaction_weight=0), TASK, weights)(model, inputs, target)
    log_p = logits.log_softmax(dim=1)[torch.arange(8), target]
    assert weighted.task.item() == pytest.approx(float(-(weights[target] * log_p).sum() / weights[target].sum()), abs=1e-6)
    smoothed = objective(interaction_weight=0, label_smoothing=0.2)(model, inputs, target)
    mixed = 0.8 * log_p + 0.2 * logits.log_softmax(dim=1).mean(dim=1)
    assert smoothed.task.item() == pytest.approx(float(-mixed.mean()), abs=1e-6)


def test_untrained_losses_start_near_the_margin() -> None:
    """With small logits L_int starts between 0.6 and 0.9 for three modalities (the paper's 0.8, facts of the method)."""
    losses = objective(interaction_weight=1.0)(small_model.model(), small_model.rows(64), torch.arange(64) % 2)
    assert 0.5 < losses.interaction_E.mean().item() < 1.0
    assert math.isfinite(losses.total.item())


def test_released_regression_losses_equal_the_released_codes(shared_data: Path) -> None:
    """The released variant reproduces the golden regression losses to 1e-6, wrong synergy sign and all."""
    golden = np.load(shared_data / "golden" / "losses.npz")
    found = released_regression_losses(torch.from_numpy(golden["regression_n3_outputs"]))
    np.testing.assert_allclose(found, golden["regression_n3_losses"], atol=1e-6, rtol=0)


def test_bounded_regression_losses_have_the_right_signs() -> None:
    """Synergy falls when replaced modalities move the output, redundancy when they do not, and none falls below zero."""
    still = torch.zeros(5, 4, 8, 1)
    moved = still.clone()
    moved[:, 1:] = 2.0
    unmoved_E, moved_E = bounded_regression_losses(still), bounded_regression_losses(moved)
    assert unmoved_E[-2] == 1
    assert moved_E[-2] == 0
    assert unmoved_E[-1] == 0
    assert moved_E[-1] == 4
    assert (bounded_regression_losses(100 * torch.randn(5, 4, 8, 1)) >= 0).all()


def test_a_uniqueness_expert_of_a_regression_wants_its_own_modality_to_matter() -> None:
    """The loss is smallest when only the expert's own modality moves its output."""
    own, other = torch.zeros(5, 4, 8, 1), torch.zeros(5, 4, 8, 1)
    own[0, 1], other[0, 2] = 3.0, 3.0
    assert bounded_regression_losses(own)[0] == 0
    assert bounded_regression_losses(other)[0] > 1
