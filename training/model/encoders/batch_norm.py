"""Batch normalisation for batches in which rows may be absent, or alone.

A row without a single value is replaced outside of the encoder (`training.model.modality`), so what the encoder makes of it
must not move the statistics of those that are there; and a batch may end in a single row, which has no variance.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _AnyBatch(nn.modules.batchnorm._BatchNorm):
    """Uses the running statistics, and leaves them alone, when a training batch has fewer than two values per channel."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name torch gives it
        if self.training and input.numel() < 2 * input.shape[1]:
            return nn.functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class VectorBatchNorm(_AnyBatch, nn.BatchNorm1d):
    """Of (B, F)."""


class ImageBatchNorm(_AnyBatch, nn.BatchNorm2d):
    """Of (B, C, H, W)."""


def encode_present(encode: Callable[[Tensor], Tensor], x_BF: Tensor) -> Tensor:
    """In training: `encode`, (B, F) to (B, P, D), of the rows that hold a value; tokens of the others are 0."""
    present = (~torch.isnan(x_BF).all(dim=1)).nonzero()[:, 0]
    tokens = encode(x_BF[present])
    return tokens.new_zeros(len(x_BF), *tokens.shape[1:]).index_copy(0, present, tokens)
