"""The published objective: what its total is made of, what it moves, and its options."""

import math

import pytest
import torch

from tests.training import small_model
from tests.training.objectives.all_losses import all_losses
from training.errors import RecipeError
from training.model.masking import zero_vector
from training.model.mixture import I2MoE
from training.objectives.config import ObjectiveConfig
from training.objectives.paper import PaperObjective
from training.tasks import make_task

TASK = make_task(small_model.TASK)


def gradients(loss: torch.Tensor, model: I2MoE) -> dict[str, float]:
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
