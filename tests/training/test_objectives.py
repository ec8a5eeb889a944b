import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from service.bundle.manifest import ExpertInfo
from tests.training import small_model
from training.errors import RecipeError
from training.model.masking import zero_vector
from training.model.mixture import I2MoE
from training.objectives import (
    BOUNDED_REGRESSION,
    CLASSIFICATION,
    RELEASED_REGRESSION,
    LossRules,
    ObjectiveConfig,
    PaperObjective,
    interaction_losses,
    redundancy_loss,
    synergy_loss,
    uniqueness_loss,
)
from training.tasks import make_task

TASK = make_task(small_model.TASK)


def all_losses(outputs_EVBC: Tensor, rules: LossRules = CLASSIFICATION) -> Tensor:
    """The losses (E,) of the paper's full set of experts, every modality replaced once."""
    names = [f"m{i}" for i in range(outputs_EVBC.shape[1] - 1)]
    unique = [ExpertInfo(name=f"unique:{name}", kind="uniqueness", modality=name) for name in names]
    roles = [*unique, ExpertInfo(name="synergy", kind="synergy"), ExpertInfo(name="redundancy", kind="redundancy")]
    return interaction_losses(outputs_EVBC, roles, names, rules)


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
        losses_E = all_losses(model.run_perturbed(model.embed(inputs), torch.randn_like, range(3)).logits)
        reached = {name for name, size in gradients(losses_E[expert], model).items() if size > 0}
        assert f"experts.{expert}.head.weight" in reached
        assert all(any(name.startswith(f"encoders.{i}.") for name in reached) for i in range(3))
        assert not any(name.startswith(f"experts.{other}.") for name in reached for other in range(5) if other != expert)
        assert not any(name.startswith("reweighting") for name in reached)


def test_gradients_flow_through_clean_and_perturbed_passes() -> None:
    """Nothing is detached: the losses have gradients with respect to every pass of every expert."""
    torch.manual_seed(0)
    logits_EVBC = (0.1 * torch.randn(5, 4, 6, 2)).requires_grad_()
    all_losses(logits_EVBC).sum().backward()
    assert logits_EVBC.grad is not None
    assert (logits_EVBC.grad.abs().sum(dim=(2, 3)) > 0).all()


def objective(**changes: object) -> PaperObjective:
    return PaperObjective(ObjectiveConfig.model_validate(changes), TASK, small_model.schema().names)


def test_total_is_task_plus_weighted_mean_interaction() -> None:
    """L = L_task + interaction_weight x mean of the experts' losses, and the task loss is that of the mixture."""
    model, inputs, target = small_model.model(), small_model.rows(8), torch.arange(8) % 2
    losses = objective(interaction_weight=0.3, masking="zero")(model, inputs, target)
    logits = model(inputs).logits_BC
    wanted_E = all_losses(model.run_perturbed(model.embed(inputs), zero_vector, range(3)).logits)
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
    weighted = PaperObjective(ObjectiveConfig(interaction_weight=0), TASK, small_model.schema().names, weights)(
        model, inputs, target
    )
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


def test_fewer_passes_draw_their_modalities_anew() -> None:
    """With one perturbed pass a step, uniqueness experts have no loss, and every modality is drawn in some step."""
    model, inputs, target = small_model.model(), small_model.rows(8), torch.arange(8) % 2
    one = objective(interaction_weight=1.0, num_perturbed=1)
    assert (one(model, inputs, target).interaction_E[:3] == 0).all()
    assert (one(model, inputs, target).interaction_E[3:] != 0).all()
    torch.manual_seed(0)
    assert {tuple(one._replaced_modalities()) for _ in range(50)} == {(0,), (1,), (2,)}
    two = objective(interaction_weight=1.0, num_perturbed=2)
    losses_E = two(model, inputs, target).interaction_E
    assert int((losses_E[:3] == 0).sum()) == 1


def test_all_passes_are_the_default_however_said() -> None:
    """Asking for as many passes as modalities is the full method."""
    model, inputs, target = small_model.model(), small_model.rows(8), torch.arange(8) % 2
    full = objective(interaction_weight=1.0, masking="zero")(model, inputs, target)
    asked = objective(interaction_weight=1.0, masking="zero", num_perturbed=3)(model, inputs, target)
    torch.testing.assert_close(full.interaction_E, asked.interaction_E)


def test_more_passes_than_modalities_are_refused() -> None:
    """One line with the largest possible number."""
    with pytest.raises(RecipeError, match="num_perturbed: expected at most 3, found 4"):
        objective(num_perturbed=4)


def test_latent_contrast_has_a_live_gradient() -> None:
    """Losses on latents move the experts' layers and not their heads; the released ablation detaches and moves nothing."""
    model, inputs, target = small_model.model(), small_model.rows(16), torch.arange(16) % 2
    latent, plain = objective(interaction_weight=1.0, on="latents"), objective(interaction_weight=0.0)
    torch.manual_seed(0)
    moved = gradients(latent(model, inputs, target).total, model)
    torch.manual_seed(0)
    still = gradients(plain(model, inputs, target).total, model)
    assert moved["experts.0.layers.0.attention.query.weight"] != still["experts.0.layers.0.attention.query.weight"]
    assert moved["experts.0.head.weight"] == pytest.approx(still["experts.0.head.weight"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"experts": "synergy_redundancy"}, ["synergy", "redundancy"]), ({"experts": "single"}, ["fusion"])],
)
def test_fewer_experts_are_a_recipe_value(changes: dict[str, object], names: list[str]) -> None:
    """The ablations without uniqueness experts, or with one fusion module alone, have exactly those experts."""
    model = small_model.model(changes)
    assert [role.name for role in model.roles] == names
    output = model(small_model.rows(4))
    assert output.expert_weights_BE.shape == (4, len(names))
    weight = 0.0 if names == ["fusion"] else 1.0
    losses = objective(interaction_weight=weight)(model, small_model.rows(4), torch.arange(4) % 2)
    assert len(losses.interaction_E) == (0 if names == ["fusion"] else 2)


def test_simple_weights_are_the_same_for_every_sample() -> None:
    """The ablation's weights start equal, do not depend on the sample, and are learned."""
    model = small_model.model({"reweighting": {"kind": "simple"}})
    weights_BE = model(small_model.rows(6)).expert_weights_BE
    torch.testing.assert_close(weights_BE, torch.full((6, 5), 0.2))
    objective(interaction_weight=0.0)(model, small_model.rows(6), torch.arange(6) % 2).total.backward()
    assert model.reweighting.weights.grad is not None
