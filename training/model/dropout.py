"""Dropout whose random masks are cheap on the CPU.

torch draws one Bernoulli number per element there, from a sequential generator that makes a whole random word for each: in
a training step of small experts that is the largest single cost. Here a 64-bit word is four elements' 16 random bits, and an
element is kept where they are at least a threshold. The keep probability is a multiple of 2^-16, the nearest to the one asked
for, and kept values are scaled by its inverse, so that the expectation is exact. Where torch has a kernel that draws in
parallel, on every other device, that is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16  # of a 16-bit number
_PER_WORD = 4


class Dropout(nn.Dropout):
    """Zeroes elements with probability `p` in training, scaling the others to keep the expectation (Srivastava et al. 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape; in evaluation, and with `p` 0, itself."""
        if not self.training or self.p == 0:
            return x
        return x * keep_mask(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)


def keep_mask(like: Tensor, rate: float) -> Tensor:
    """A CPU tensor like `like` of zeros, at a rate of `rate`, and of the inverse of the rate of all others; no gradient."""
    num_dropped = round(rate * _LEVELS)
    if num_dropped == _LEVELS:
        return torch.zeros_like(like)
    words = torch.empty(-(-like.numel() // _PER_WORD), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: like.numel()].view(like.shape) >= num_dropped - _LEVELS // 2
    return kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - num_dropped))
