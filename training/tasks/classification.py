"""Binary and multiclass tasks: one true class per row."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.tasks import metrics as m
from training.tasks.base import SMALLEST_WEIGHT, Task, frequencies_to_weights, log_counts


class Classification(Task):
    """Cross entropy over C classes; targets are class positions (N,)."""

    metrics: ClassVar[Mapping[str, Any]] = {
        "auroc": m.auroc,
        "auprc": m.auprc,
        "brier": m.brier,
        "ece": m.expected_calibration_error,
        "ece_debiased": m.debiased_calibration_error,
        "accuracy": m.accuracy,
        "f1": m.f1,
        "log_loss": m.log_loss,
    }
    default_selection = "auroc"

    def loss(self, logits_BC: Tensor, target_B: Tensor, *, class_weights_C: Tensor | None, label_smoothing: float) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(logits_BC, target_B, weight=class_weights_C, label_smoothing=label_smoothing)

    def loss_weight(self, target_B: Tensor, class_weights_C: Tensor | None) -> Tensor | float:
        """Rows, or what their classes weigh."""
        return float(len(target_B)) if class_weights_C is None else class_weights_C[target_B].sum()

    def covers(self, target_N: NDArray[Any]) -> bool:
        """Every class occurs."""
        return len(np.unique(target_N)) == len(self.info.labels)

    def balanced_weights(self, target_N: NDArray[Any]) -> Tensor:
        """Inverse training frequencies of the classes (C,)."""
        return frequencies_to_weights(np.bincount(target_N, minlength=len(self.info.labels)), len(target_N))

    def base_rate(self, target_N: NDArray[Any], class_weights_C: Tensor | None) -> Tensor:
        """Log frequencies of the classes, times what they weigh."""
        logits_C = log_counts(np.bincount(target_N, minlength=len(self.info.labels)))
        if class_weights_C is not None:
            logits_C = logits_C + class_weights_C.clamp(min=SMALLEST_WEIGHT).log()
        return logits_C - logits_C.mean()

    def metric_range(self, name: str) -> tuple[float, float]:
        """As in the base, but the Brier score of more than two classes reaches 2."""
        return (0.0, 2.0) if name == "brier" and len(self.info.labels) > 2 else super().metric_range(name)
