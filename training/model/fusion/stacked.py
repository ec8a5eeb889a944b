"""Layers of S independent weight sets that run as one batched operation, instead of S modules one after the other.

Shape suffixes: S sets, I inputs, O outputs, D hidden.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """y_s = W_s x_s + b_s for s = 1..S; each W_s starts as an nn.Linear's would. Parameters: S (I O + O)."""

    def __init__(self, num_sets: int, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_dim)
        self.weight_SOI = nn.Parameter(torch.empty(num_sets, out_dim, in_dim).uniform_(-bound, bound))
        self.bias_SO = nn.Parameter(torch.empty(num_sets, out_dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(S, ..., I) to (S, ..., O); a first axis of 1 gives every set the same input."""
        y = torch.matmul(x.flatten(1, -2), self.weight_SOI.mT)
        if self.bias_SO is not None:
            y = y + self.bias_SO[:, None]
        return y.unflatten(1, x.shape[1:-1])

    def one(self, position: int, x: Tensor) -> Tensor:
        """Set `position` alone: (..., I) to (..., O)."""
        return F.linear(x, self.weight_SOI[position], None if self.bias_SO is None else self.bias_SO[position])


class StackedLayerNorm(nn.Module):
    """Layer normalisation of (S, B, P, D) over D, scale and shift per set. Parameters: 2 S D."""

    def __init__(self, num_sets: int, hidden_dim: int) -> None:
        super().__init__()
        self.scale_SD = nn.Parameter(torch.ones(num_sets, hidden_dim))
        self.bias_SD = nn.Parameter(torch.zeros(num_sets, hidden_dim))

    def forward(self, x_SBPD: Tensor) -> Tensor:
        """(S, B, P, D) to (S, B, P, D)."""
        standard_SBPD = F.layer_norm(x_SBPD, x_SBPD.shape[-1:])
        return standard_SBPD * self.scale_SD[:, None, None] + self.bias_SD[:, None, None]
