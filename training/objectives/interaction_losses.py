"""The paper's interaction losses: what tells experts apart, as functions over logits that the model computed.

Shape suffixes: E experts (uniqueness 1..n, synergy, redundancy), V variants (clean, then modality 1..n replaced), B batch,
C classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from service.bundle.manifest import ExpertInfo

TRIPLET_MARGIN = 1.0


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
