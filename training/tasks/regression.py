"""Regression tasks: one number per row."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.tasks import metrics as m
from training.tasks.base import Task, no_weights


class Regression(Task):
    """Smooth L1 (Huber) loss in units of the training target's standard deviation; targets are floats (N,)."""

    metrics: ClassVar[Mapping[str, Any]] = {
        "mae": m.mae,
        "rmse": m.rmse,
        "r2": m.r2,
        "correlation": m.correlation,
        "sign_accuracy": m.sign_accuracy,
    }
    default_selection = "mae"

    def loss(self, logits_BC: Tensor, target_B: Tensor, *, class_weights_C: Tensor | None, label_smoothing: float) -> Tensor:
        """Mean smooth L1 of standardised outputs (B, 1) and targets (B,)."""
        if class_weights_C is not None or label_smoothing:
            raise no_weights("regression")
        return F.smooth_l1_loss(logits_BC[:, 0], target_B)

    def covers(self, target_N: NDArray[Any]) -> bool:
        """More than one value occurs."""
        return bool(target_N.min() < target_N.max())

    def balanced_weights(self, target_N: NDArray[Any]) -> Tensor:
        """There are none."""
        raise no_weights("regression")

    def base_rate(self, target_N: NDArray[Any], class_weights_C: Tensor | None) -> Tensor:
        """The training mean, from which standardised outputs are counted."""
        return torch.zeros(1)
