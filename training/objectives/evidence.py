"""Evidence: logits counted from the base rate, made fit to be divided.

0 is what is known of somebody of whom nothing is known: the base rate (regression: the training mean, and evidence is in
standard deviations). Shape suffixes: B batch, C outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.bundle.manifest import TaskKind
from training.model.dropout import Dropout
from training.objectives.base import TaskLoss

_TINY = 1e-6
_SCALES = torch.cat([torch.zeros(1), torch.logspace(-1.5, 0.5, 60)])  # 0, then 0.03 to 3.2
_MAX_SLOPE = 1.2  # regression: evidence is hardly ever worth more than it says


@dataclass(frozen=True, slots=True)
class EvidenceRules:
    """What evidence of one kind of task looks like: centred over classes, limited to a margin of `limit` log odds.

    The margin is the largest logit less the smallest, for multilabel each label's own logit. Without a limit, evidence of
    easy data grows without end, and sums of it (three modalities that each say everything) mean nothing. Regression is
    neither centred nor limited.
    """

    kind: TaskKind
    limit: float

    def centre(self, logits_BC: Tensor) -> Tensor:
        """Logits (..., C) less their mean over classes, where there are classes."""
        return logits_BC - logits_BC.mean(dim=-1, keepdim=True) if self.kind in ("binary", "multiclass") else logits_BC

    def limiting_factor(self, evidence_BC: Tensor) -> Tensor:
        """By which to multiply: limit tanh(margin / limit) / margin, from 1 for weak evidence to 0; (..., 1) or (..., C)."""
        if self.kind == "regression":
            return torch.ones_like(evidence_BC)
        margin_BC = evidence_BC.abs() if self.kind == "multilabel" else _span(evidence_BC)
        margin_BC = margin_BC.clamp(min=_TINY)
        return self.limit * torch.tanh(margin_BC / self.limit) / margin_BC

    def limited(self, evidence_BC: Tensor) -> Tensor:
        """Evidence (..., C) whose margin stays below `limit`."""
        return evidence_BC * self.limiting_factor(evidence_BC)


def _span(evidence_BC: Tensor) -> Tensor:
    return evidence_BC.amax(dim=-1, keepdim=True) - evidence_BC.amin(dim=-1, keepdim=True)


def fit_scale(evidence_BC: Tensor, target_B: Tensor, task_loss: TaskLoss, kind: TaskKind) -> float:
    """What evidence is worth on rows it was not fitted to: the scale whose loss is lowest, 0 where it knows nothing.

    Regression: least squares, between 0 and 1.2.
    """
    if kind == "regression":
        products, squares = (evidence_BC[:, 0] * target_B).sum(), evidence_BC.square().sum()
        return float((products / squares.clamp(min=_TINY)).clamp(0, _MAX_SLOPE))
    losses = torch.stack([task_loss(scale * evidence_BC, target_B) for scale in _SCALES.to(evidence_BC.device)])
    return float(_SCALES[int(losses.argmin())])


def fit_slopes(expected_nBC: Tensor, found_nBC: Tensor) -> list[float]:
    """For each of n the slope between 0 and 1 with which `expected_nBC` tells `found_nBC` best, by least squares."""
    products_n, squares_n = (expected_nBC * found_nBC).sum(dim=(1, 2)), expected_nBC.square().sum(dim=(1, 2))
    slopes: list[float] = (products_n / squares_n.clamp(min=_TINY)).clamp(0, 1).tolist()
    return slopes


def small_mlp(in_dim: int, num_outputs: int, *, hidden: int, dropout: float) -> nn.Module:
    """LayerNorm, Linear, GELU, Dropout, Linear: what reads evidence off tokens (..., in_dim)."""
    return nn.Sequential(
        nn.LayerNorm(in_dim), nn.Linear(in_dim, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, num_outputs)
    )


def freeze(module: nn.Module) -> None:
    """From here on `module` answers and does not learn."""
    module.eval().requires_grad_(False)
