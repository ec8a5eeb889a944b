"""What a model is trained to do: the task loss of the mixture plus the interaction losses of the experts.

Losses are functions over logits that the model computed; the model knows nothing of them. Shape suffixes: E experts
(uniqueness 1..n, synergy, redundancy), V variants (clean, then modality 1..n replaced), B batch, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from training.config import Config
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
    gate_weight: float = Field(default=0.01, ge=0)  # of the load-balancing loss of backbones with gates


def uniqueness_loss(logits_VBC: Tensor, modality: int) -> Tensor:
    """Losing its own modality is the negative, losing any other a positive.

    L = 1/(n-1) sum_{j != i} mean_B max(|y0 - yj| - |y0 - yi| + 1, 0), Euclidean distances with a 1e-7 offset
    (I2MoE section 3.2, nn.TripletMarginLoss). `modality` i counts from 0.
    """
    anchor_BC, negative_BC = logits_VBC[0], logits_VBC[modality + 1]
    positives = [j for j in range(1, len(logits_VBC)) if j != modality + 1]
    losses = [F.triplet_margin_loss(anchor_BC, logits_VBC[j], negative_BC, margin=TRIPLET_MARGIN, eps=1e-7) for j in positives]
    return torch.stack(losses).mean()


def _similarity(logits_VBC: Tensor) -> Tensor:
    """Mean cosine similarity of the clean logits with each perturbed pass's: a scalar in [-1, 1]."""
    return F.cosine_similarity(logits_VBC[:1], logits_VBC[1:], dim=-1, eps=1e-12).mean()


def synergy_loss(logits_VBC: Tensor) -> Tensor:
    """Losing any modality is a negative: L = 1/n sum_j mean_B cos(y0, yj), minimised (I2MoE section 3.2)."""
    return _similarity(logits_VBC)


def redundancy_loss(logits_VBC: Tensor) -> Tensor:
    """Losing any modality is a positive: L = 1/n sum_j mean_B (1 - cos(y0, yj)) (I2MoE section 3.2)."""
    return 1 - _similarity(logits_VBC)


def interaction_losses(logits_EVBC: Tensor) -> Tensor:
    """(E, V, B, C) logits to one loss per expert (E,), in expert order. Their mean is the paper's L_int."""
    num_experts, num_variants = logits_EVBC.shape[:2]
    num_modalities = num_variants - 1
    if num_experts != num_modalities + 2:
        raise ValueError(f"{num_modalities} modalities need {num_modalities + 2} experts, found {num_experts}")
    unique = [uniqueness_loss(logits_EVBC[i], i) for i in range(num_modalities)]
    return torch.stack([*unique, synergy_loss(logits_EVBC[-2]), redundancy_loss(logits_EVBC[-1])])


def _squared_changes(outputs_VB: Tensor) -> Tensor:
    """(V, B) outputs to how much each replaced modality moves them: n mean squared changes (n,)."""
    return (outputs_VB[1:] - outputs_VB[:1]).square().mean(dim=1)


def bounded_regression_losses(outputs_EVBC: Tensor) -> Tensor:
    """Interaction losses (E,) for one output per row, in standard deviations of the target.

    The classification losses' roles with distances in place of similarities, each bounded below by 0:
    uniqueness i: the triplet loss, as for classification;
    synergy:      1/n sum_j mean_B max(1 - |y0 - yj|, 0)^2, so every replaced modality must move the output by 1 or more;
    redundancy:   1/n sum_j mean_B (y0 - yj)^2, so none may.
    The paper says only that mean squared errors "measure differences"; its released code minimises the synergy expert's
    changes, the opposite of its role, and its uniqueness loss is unbounded (`released_regression_losses`).
    """
    num_modalities = outputs_EVBC.shape[1] - 1
    unique = [uniqueness_loss(outputs_EVBC[i], i) for i in range(num_modalities)]
    synergy_VB, redundancy_VB = outputs_EVBC[-2, :, :, 0], outputs_EVBC[-1, :, :, 0]
    unmoved = F.relu(1 - (synergy_VB[1:] - synergy_VB[:1]).abs()).square().mean()
    return torch.stack([*unique, unmoved, _squared_changes(redundancy_VB).mean()])


def released_regression_losses(outputs_EVBC: Tensor) -> Tensor:
    """The released code's losses (E,): uniqueness i 1/(n-1) sum_{j != i} (MSE_j - MSE_i), synergy and redundancy mean MSE."""
    num_modalities = outputs_EVBC.shape[1] - 1
    changes_En = torch.stack([_squared_changes(outputs_VB) for outputs_VB in outputs_EVBC[..., 0]])
    own_n = changes_En[range(num_modalities), range(num_modalities)]
    others_n = (changes_En[:num_modalities].sum(dim=1) - own_n) / (num_modalities - 1)
    return torch.cat([others_n - own_n, changes_En[num_modalities:].mean(dim=1)])


INTERACTION_LOSSES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "classification": interaction_losses,
    "bounded": bounded_regression_losses,
    "released": released_regression_losses,
}


def _losses_kind(config: ObjectiveConfig, task: Task) -> str:
    return config.regression_losses if isinstance(task, Regression) else "classification"


class Losses(NamedTuple):
    """A training step's losses; `total` is what is minimised."""

    total: Tensor  # ()
    task: Tensor  # ()
    interaction_E: Tensor  # (E,), or (0,) when the interaction weight is 0 and nothing was computed


class PaperObjective:
    """L = L_task(sum_e w_e y_e, target) + interaction_weight / E * sum_e L_e + gate_weight * L_gate (I2MoE, Algorithm 1).

    The task loss is on the mixture alone: no expert is asked to predict by itself. Nothing is detached.
    """

    def __init__(self, config: ObjectiveConfig, task: Task, class_weights_C: Tensor | None = None) -> None:
        self.config, self.task = config, task
        self.class_weights_C = class_weights_C
        self._replacement = MASKINGS[config.masking]
        self._interaction_losses = INTERACTION_LOSSES[_losses_kind(config, task)]

    def __call__(self, model: I2MoE, inputs: list[Tensor], target_B: Tensor) -> Losses:
        """The losses of one batch. `inputs` holds one (B, columns) tensor per modality, `target_B` the targets.

        Targets of regression tasks are in the model's own units (standard deviations from the training mean).
        """
        tokens_BnPD = model.embed(inputs)
        weights_BE = model.reweighting(tokens_BnPD)
        if self.config.interaction_weight == 0:
            logits_EBC, gate_loss = model.run_experts(tokens_BnPD)
            interaction_E = logits_EBC.new_zeros(0)
        else:
            logits_EVBC, gate_loss = model.run_perturbed(tokens_BnPD, self._replacement)
            logits_EBC = logits_EVBC[:, 0]
            interaction_E = self._interaction_losses(logits_EVBC)
        task = self._task_loss(model.mix(weights_BE, logits_EBC), target_B)
        total = task + self.config.gate_weight * gate_loss
        if len(interaction_E):
            total = total + self.config.interaction_weight * interaction_E.mean()
        return Losses(total, task, interaction_E.detach())

    def _task_loss(self, logits_BC: Tensor, target_B: Tensor) -> Tensor:
        weights_C = None if self.class_weights_C is None else self.class_weights_C.to(logits_BC.device)
        return self.task.loss(logits_BC, target_B, class_weights_C=weights_C, label_smoothing=self.config.label_smoothing)
