"""What a model is trained to do: the task loss of the mixture plus the interaction losses of the experts.

Losses are functions over logits that the model computed; the model knows nothing of them. Shape suffixes: E experts
(uniqueness 1..n, synergy, redundancy), V variants (clean, then modality 1..n replaced), B batch, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from service.bundle.manifest import ExpertInfo
from training.config import Config
from training.errors import RecipeError
from training.model.masking import MASKINGS
from training.model.mixture import I2MoE
from training.tasks import Regression, Task

TRIPLET_MARGIN = 1.0


class ObjectiveConfig(Config):
    """The [objective] section of a recipe."""

    kind: Literal["paper"] = "paper"
    interaction_weight: float = Field(default=0.01, ge=0)  # lambda_int of the paper; 0 trains without interaction losses
    masking: Literal["random", "mean", "zero"] = "random"
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None  # "balanced": inverse training frequencies
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    regression_losses: Literal["bounded", "released"] = "bounded"  # regression: which interaction losses
    on: Literal["logits", "latents"] = "logits"  # what the interaction losses compare; latents: an ablation, with live gradient
    num_perturbed: int | None = Field(default=None, ge=1)  # perturbed passes a step, modalities drawn at random; None: all
    gate_weight: float = Field(default=0.01, ge=0)  # of the load-balancing loss of backbones with gates


def uniqueness_loss(outputs_VBC: Tensor, own: int) -> Tensor:
    """Losing its own modality is the negative, losing any other a positive.

    L = 1/(n-1) sum_{j != i} mean_B max(|y0 - yj| - |y0 - yi| + 1, 0), Euclidean distances with a 1e-7 offset
    (I2MoE section 3.2, nn.TripletMarginLoss). `own` counts perturbed variants from 0.
    """
    anchor_BC, negative_BC = outputs_VBC[0], outputs_VBC[own + 1]
    positives = [j for j in range(1, len(outputs_VBC)) if j != own + 1]
    losses = [F.triplet_margin_loss(anchor_BC, outputs_VBC[j], negative_BC, margin=TRIPLET_MARGIN, eps=1e-7) for j in positives]
    return torch.stack(losses).mean()


def _similarity(outputs_VBC: Tensor) -> Tensor:
    """Mean cosine similarity of the clean outputs with each perturbed pass's: a scalar in [-1, 1]."""
    return F.cosine_similarity(outputs_VBC[:1], outputs_VBC[1:], dim=-1, eps=1e-12).mean()


def synergy_loss(outputs_VBC: Tensor) -> Tensor:
    """Losing any modality is a negative: L = 1/n sum_j mean_B cos(y0, yj), minimised (I2MoE section 3.2)."""
    return _similarity(outputs_VBC)


def redundancy_loss(outputs_VBC: Tensor) -> Tensor:
    """Losing any modality is a positive: L = 1/n sum_j mean_B (1 - cos(y0, yj)) (I2MoE section 3.2)."""
    return 1 - _similarity(outputs_VBC)


def _squared_changes(outputs_VB1: Tensor) -> Tensor:
    """(V, B, 1) outputs to how much each replaced modality moves them: V - 1 mean squared changes."""
    return (outputs_VB1[1:] - outputs_VB1[:1]).square().mean(dim=(1, 2))


def bounded_synergy_loss(outputs_VB1: Tensor) -> Tensor:
    """1/n sum_j mean_B max(1 - |y0 - yj|, 0)^2: every replaced modality must move the output by a deviation or more."""
    return F.relu(1 - (outputs_VB1[1:] - outputs_VB1[:1]).abs()).square().mean()


def squared_change_loss(outputs_VB1: Tensor) -> Tensor:
    """1/n sum_j mean_B (y0 - yj)^2: no replaced modality may move the output."""
    return _squared_changes(outputs_VB1).mean()


def released_uniqueness_loss(outputs_VB1: Tensor, own: int) -> Tensor:
    """The released code's 1/(n-1) sum_{j != i} (MSE_j - MSE_i), which has no lower bound."""
    changes = _squared_changes(outputs_VB1)
    return (changes.sum() - changes[own]) / (len(changes) - 1) - changes[own]


class LossRules(NamedTuple):
    """The interaction loss of every kind of expert."""

    uniqueness: Callable[[Tensor, int], Tensor]
    synergy: Callable[[Tensor], Tensor]
    redundancy: Callable[[Tensor], Tensor]


CLASSIFICATION = LossRules(uniqueness_loss, synergy_loss, redundancy_loss)
# One output per row, in standard deviations of the target. The paper says only that mean squared errors "measure differences".
# Bounded: the classification roles with distances for similarities, each bounded below by 0. Released: as the released code
# has it, where the synergy expert minimises its changes, the opposite of its role.
BOUNDED_REGRESSION = LossRules(uniqueness_loss, bounded_synergy_loss, squared_change_loss)
RELEASED_REGRESSION = LossRules(released_uniqueness_loss, squared_change_loss, squared_change_loss)


def interaction_losses(
    outputs_EVBC: Tensor, roles: Sequence[ExpertInfo], modalities: Sequence[str], rules: LossRules = CLASSIFICATION
) -> Tensor:
    """(E, V, B, C) outputs to one loss per expert (E,), by role. Their mean is the paper's L_int.

    `modalities` names the modality replaced in each of the V - 1 perturbed variants. A uniqueness expert has no loss (0)
    in a step that does not replace its own modality, or that replaces nothing else.
    """
    if outputs_EVBC.shape[:2] != (len(roles), len(modalities) + 1):
        expected = (len(roles), len(modalities) + 1)
        raise ValueError(f"expected outputs of {expected} experts and variants, found {tuple(outputs_EVBC.shape[:2])}")
    return torch.stack(
        [_expert_loss(outputs_VBC, role, modalities, rules) for outputs_VBC, role in zip(outputs_EVBC, roles, strict=True)]
    )


def _expert_loss(outputs_VBC: Tensor, role: ExpertInfo, modalities: Sequence[str], rules: LossRules) -> Tensor:
    match role.kind:
        case "synergy":
            return rules.synergy(outputs_VBC)
        case "redundancy":
            return rules.redundancy(outputs_VBC)
        case "uniqueness" if role.modality in modalities and len(modalities) > 1:
            return rules.uniqueness(outputs_VBC, modalities.index(role.modality))
        case _:
            return outputs_VBC.new_zeros(())


class Shares(NamedTuple):
    """What a micro-batch counts for in its optimiser step: losses times these add up to the losses of the whole batch."""

    rows: float = 1.0  # of the batch's rows
    task: Tensor | float = 1.0  # of its task loss: of rows, or of what their classes weigh


ALL, NOTHING = Shares(), Shares(0.0, 0.0)


class Losses(NamedTuple):
    """The losses of a batch, or a micro-batch's shares of them; `total` is what is minimised."""

    total: Tensor  # ()
    task: Tensor  # ()
    interaction_E: Tensor  # (E,), or (0,) when the interaction weight is 0 and nothing was computed


class PaperObjective:
    """L = L_task(sum_e w_e y_e, target) + interaction_weight / E * sum_e L_e + gate_weight * L_gate (I2MoE, Algorithm 1).

    The task loss is on the mixture alone: no expert is asked to predict by itself. Nothing is detached.
    """

    def __init__(
        self, config: ObjectiveConfig, task: Task, modalities: Sequence[str], class_weights_C: Tensor | None = None
    ) -> None:
        self.config, self.task, self.modalities = config, task, tuple(modalities)
        if config.num_perturbed is not None and config.num_perturbed > len(self.modalities):
            raise RecipeError(f"objective.num_perturbed: expected at most {len(self.modalities)}, found {config.num_perturbed}")
        self.class_weights_C = class_weights_C
        self._replacement = MASKINGS[config.masking]
        self._rules = self._choose_rules()

    def _choose_rules(self) -> LossRules:
        if not isinstance(self.task, Regression) or self.config.on == "latents":
            return CLASSIFICATION
        return BOUNDED_REGRESSION if self.config.regression_losses == "bounded" else RELEASED_REGRESSION

    def __call__(self, model: I2MoE, inputs: list[Tensor], target_B: Tensor, shares: Shares = ALL) -> Losses:
        """The losses of one batch. `inputs` holds one (B, columns) tensor per modality, `target_B` the targets.

        Targets of regression tasks are in the model's own units (standard deviations from the training mean). Under
        autocast the model's answers are compared in float32.
        """
        tokens_BnPD = model.embed(inputs)
        weights_BE = model.reweighting(tokens_BnPD)
        logits_EBC, interaction_E, gate_loss = self._experts(model, tokens_BnPD)
        with torch.autocast(logits_EBC.device.type, enabled=False):  # a mixture of few terms needs all their digits
            mixed_BC = model.mix(weights_BE.float(), logits_EBC)
        task = shares.task * self._task_loss(mixed_BC, target_B)
        total = task + shares.rows * (self.config.gate_weight * gate_loss)
        interaction_E = shares.rows * interaction_E
        if len(interaction_E):
            total = total + self.config.interaction_weight * interaction_E.mean()
        return Losses(total, task, interaction_E.detach())

    def shares(self, target_B: Tensor, whole_N: Tensor) -> Shares:
        """What rows with the targets `target_B` count for among those of a step, `whole_N`."""
        weights_C = self._class_weights(target_B.device)
        part, whole = (self.task.loss_weight(target, weights_C) for target in (target_B, whole_N))
        return Shares(len(target_B) / len(whole_N), part / whole)

    def _experts(self, model: I2MoE, tokens_BnPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean logits (E, B, C), interaction losses (E,) or (0,), gate loss ()."""
        if self.config.interaction_weight == 0:
            clean = model.run_experts(tokens_BnPD)
            return clean.logits.float(), clean.logits.new_zeros(0, dtype=torch.float32), clean.gate_loss
        replaced = self._replaced_modalities()
        output = model.run_perturbed(tokens_BnPD, self._replacement, replaced)
        compared = output.latents if self.config.on == "latents" else output.logits
        names = [self.modalities[position] for position in replaced]
        interaction_E = interaction_losses(compared.float(), model.roles, names, self._rules)
        return output.logits[:, 0].float(), interaction_E, output.gate_loss

    def _replaced_modalities(self) -> list[int]:
        """All of them, or as many as wanted, drawn anew in every step."""
        if self.config.num_perturbed is None:
            return list(range(len(self.modalities)))
        drawn: list[int] = torch.randperm(len(self.modalities))[: self.config.num_perturbed].sort().values.tolist()
        return drawn

    def _class_weights(self, device: torch.device) -> Tensor | None:
        return None if self.class_weights_C is None else self.class_weights_C.to(device)

    def _task_loss(self, logits_BC: Tensor, target_B: Tensor) -> Tensor:
        weights_C = self._class_weights(logits_BC.device)
        return self.task.loss(logits_BC, target_B, class_weights_C=weights_C, label_smoothing=self.config.label_smoothing)


class LossModule(nn.Module):
    """An objective over a model as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, objective: PaperObjective, model: I2MoE) -> None:
        super().__init__()
        self.objective, self.model = objective, model

    def forward(self, inputs: list[Tensor], target_B: Tensor, shares: Shares) -> Losses:
        """As `PaperObjective.__call__`."""
        return self.objective(self.model, inputs, target_B, shares)
