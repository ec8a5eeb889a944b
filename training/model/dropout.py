"""Dropout whose random masks are cheap on the CPU.

torch draws one Bernoulli number per element there, from a sequential generator that makes a whole random word for each: in
a training step of small experts that is the largest single cost. Here a 64-bit word is the random bits of several elements,
and an element is kept where its bits are at least a threshold: 8 bits where the rate is a multiple of 1/256, such as 0.5 and
0.25, else 16, and the rate is the nearest multiple of 2^-16. Kept values are scaled by the inverse of the rate at which they
are kept, so that the expectation is exact. On every other device torch draws in parallel, and its own kernel is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WORD_BITS = 64
_NUMBERS = {8: torch.int8, 16: torch.int16}


class Dropout(nn.Dropout):
    """Zeroes elements with probability `p` in training, scaling the others to keep the expectation (Srivastava et al. 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape; in evaluation, and with `p` 0, itself."""
        if not self.training or self.p == 0:
            return x
        return x * keep_mask(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)


def keep_mask(like: Tensor, rate: float) -> Tensor:
    """A CPU tensor like `like` of zeros, at a rate of `rate`, and of the inverse of the rate of all others; no gradient."""
    num_bits = 8 if (rate * (1 << 8)).is_integer() else 16
    num_levels = 1 << num_bits
    num_dropped = round(rate * num_levels)
    if num_dropped == num_levels:
        return torch.zeros_like(like)
    words = torch.empty(-(-like.numel() * num_bits // _WORD_BITS), dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(_NUMBERS[num_bits])[: like.numel()].view(like.shape)
    mask = torch.empty(like.shape, dtype=like.dtype)
    torch.ge(numbers, num_dropped - num_levels // 2, out=mask)  # straight into floats: far cheaper than by way of booleans
    return mask.mul_(num_levels / (num_levels - num_dropped))
