"""Multilabel tasks: any number of labels per row."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.tasks import metrics as m
from training.tasks.base import SMALLEST_WEIGHT, Task, log_counts


class Multilabel(Task):
    """Binary cross entropy over B x C; targets are 0/1 floats (N, C)."""

    metrics: ClassVar[Mapping[str, Any]] = {
        "micro_f1": m.micro_f1,
        "macro_f1": m.macro_f1,
        "auroc": m.multilabel_auroc,
        "auprc": m.multilabel_auprc,
        "brier": m.multilabel_brier,
        "exact_match": m.exact_match,
        "log_loss": m.multilabel_log_loss,
    }
    default_selection = "macro_f1"

    def loss(self, logits_BC: Tensor, target_B: Tensor, *, class_weights_C: Tensor | None, label_smoothing: float) -> Tensor:
        """Mean binary cross entropy; class weights multiply the labels that are present."""
        smoothed = target_B * (1 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(logits_BC, smoothed, pos_weight=class_weights_C)

    def covers(self, target_N: NDArray[Any]) -> bool:
        """At least one label is there in some rows and not in others."""
        return bool(((target_N == 1).any(axis=0) & (target_N == 0).any(axis=0)).any())

    def balanced_weights(self, target_N: NDArray[Any]) -> Tensor:
        """Rows without a label per row with it (C,): its presence and its absence then weigh the same over all rows."""
        present_C = target_N.sum(axis=0)
        return (log_counts(len(target_N) - present_C) - log_counts(present_C)).exp()

    def base_rate(self, target_N: NDArray[Any], class_weights_C: Tensor | None) -> Tensor:
        """Log odds of the labels, times what their presence weighs."""
        present_C = target_N.sum(axis=0)
        logits_C = log_counts(present_C) - log_counts(len(target_N) - present_C)
        return logits_C if class_weights_C is None else logits_C + class_weights_C.clamp(min=SMALLEST_WEIGHT).log()
