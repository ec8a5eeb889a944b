"""Dropout whose random masks are cheap on the CPU.

torch draws one Bernoulli number per element there, from a sequential generator that makes a whole random word for each: in
a training step of small experts that is the largest single cost. Here a 64-bit word is the random bits of several elements,
and an element is kept where its bits are at least a threshold: as few bits as say the rate, one for 0.5 and two for 0.25, else
16, and the rate is the nearest multiple of 2^-16. Kept values are scaled by the inverse of the rate at which they are kept, so
that the expectation is exact. On every other device torch draws in parallel, and its own kernel is used.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WORD_BYTES = 8
_BYTE_BITS = 8
_MOST_BITS = 16


class Dropout(nn.Dropout):
    """Zeroes elements with probability `p` in training, scaling the others to keep the expectation (Srivastava et al. 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape; in evaluation, and with `p` 0, itself."""
        if not self.training or self.p == 0:
            return x
        return x * keep_mask(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)


def keep_mask(like: Tensor, rate: float) -> Tensor:
    """A CPU tensor like `like` of zeros, at a rate of `rate`, and of the inverse of the rate of all others; no gradient."""
    num_bits = next((bits for bits in (1, 2, 4, 8) if (rate * (1 << bits)).is_integer()), _MOST_BITS)
    num_levels = 1 << num_bits
    num_dropped = round(rate * num_levels)
    if num_dropped == num_levels:
        return torch.zeros_like(like)
    kept = _kept_by_word if num_bits == _MOST_BITS else _kept_by_byte
    return kept(like, num_bits, num_dropped).mul_(num_levels / (num_levels - num_dropped))


def _random_bytes(number: int) -> Tensor:
    return torch.empty(-(-number // _WORD_BYTES), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)[:number]


def _kept_by_word(like: Tensor, num_bits: int, num_dropped: int) -> Tensor:
    """Ones where a number of 16 bits is at least `num_dropped`."""
    numbers = _random_bytes(2 * like.numel()).view(torch.int16).view(like.shape)
    return torch.ge(
        numbers, num_dropped - (1 << (num_bits - 1)), out=torch.empty_like(like, memory_format=torch.contiguous_format)
    )


def _kept_by_byte(like: Tensor, num_bits: int, num_dropped: int) -> Tensor:
    """Ones where a number of 1, 2, 4 or 8 bits is at least `num_dropped`; each byte holds one or several, of far apart elements.

    The comparison writes straight into floats, which is far cheaper than by way of booleans.
    """
    bits, threshold = _places(num_bits, num_dropped)
    random_bytes = _random_bytes(-(-like.numel() // len(bits)))
    kept = torch.empty(len(bits), len(random_bytes), dtype=like.dtype)
    torch.ge(random_bytes & bits if num_bits < _BYTE_BITS else random_bytes, threshold, out=kept)
    return kept.view(-1)[: like.numel()].view(like.shape)


@functools.cache
def _places(num_bits: int, num_dropped: int) -> tuple[Tensor, Tensor]:
    """For each number that a byte holds: the bits that are its own, and the threshold where it stands; both (numbers, 1)."""
    place = torch.arange(0, _BYTE_BITS, num_bits)[:, None]
    return (((1 << num_bits) - 1) << place).to(torch.uint8), (num_dropped << place).to(torch.uint8)
