"""Regression: experts think in standard deviations of the training target; answers leave in the target's own unit."""

import torch
from torch import Tensor, nn


class TargetUnits(nn.Module):
    """Buffers `mean` () and `deviation` (), 0 and 1 until fitted: y = mean + deviation * output."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def fit(self, target_N: Tensor) -> None:
        """Mean and standard deviation of the training targets; a constant target keeps deviation 1."""
        self.mean.copy_(target_N.mean())
        deviation = target_N.std(correction=0)
        self.deviation.copy_(deviation if deviation > 0 else torch.ones(()))

    def forward(self, outputs: Tensor) -> Tensor:
        """Outputs of any shape to the target's unit. A weighted sum with weights of sum 1 may come before or after."""
        return self.mean + self.deviation * outputs

    def standardise(self, target: Tensor) -> Tensor:
        """Targets to the experts' unit."""
        return (target - self.mean) / self.deviation
