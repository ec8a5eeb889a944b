"""Attention over few tokens, for training on the CPU: batched matrix products on heads laid out side by side.

torch's fused attention is made for long sequences: for two to a dozen tokens it takes up to twice as long as these products on
one or two cores, and gains little from the second. From some fifty tokens on it is the faster one and stays in use.
Shape suffixes: B batch, T tokens (queries; keys may be others), D hidden, H heads, K head width, G = B H.
"""

import math
from typing import Any

import torch
from torch import Tensor

_LONGEST = 48  # tokens up to which this pays


def pays(query_BTD: Tensor) -> bool:
    """Whether `short_attention` is the faster one here."""
    return query_BTD.shape[1] <= _LONGEST and query_BTD.device.type == "cpu" and query_BTD.dtype == torch.float32


def short_attention(query_BTD: Tensor, key_value_BTE: Tensor, num_heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V by heads, (B, T, D); `key_value_BTE` holds keys, then values, E = 2 D."""
    mixed_BTD: Tensor = _ShortAttention.apply(query_BTD, key_value_BTE, num_heads)
    return mixed_BTD


def _side_by_side(x: Tensor, num_parts: int, num_heads: int) -> Tensor:
    """(B, T, parts D) to (parts, G, T, K)."""
    parts = x.view(*x.shape[:2], num_parts, num_heads, -1).permute(2, 0, 3, 1, 4)
    return parts.reshape(num_parts, -1, x.shape[1], parts.shape[-1])


def _back(x: Tensor, num_heads: int) -> Tensor:
    """(parts, G, T, K) to (B, T, parts D)."""
    return x.unflatten(1, (-1, num_heads)).permute(1, 3, 0, 2, 4).flatten(2)


class _ShortAttention(torch.autograd.Function):
    """Forward and backward by hand.

    With P = softmax(S), S = scale Q K^T, O = P V and G the gradient of O:

    dV = P^T G,  dP = G V^T,  dS = P (dP - rowsum(dP P)),  dQ = scale dS K,  dK = scale dS^T Q
    """

    @staticmethod
    def forward(ctx: Any, query_BTD: Tensor, key_value_BTE: Tensor, num_heads: int) -> Tensor:
        (query_GTK,) = _side_by_side(query_BTD, 1, num_heads)
        key_value = _side_by_side(key_value_BTE, 2, num_heads)
        ctx.scale, ctx.num_heads = 1 / math.sqrt(query_GTK.shape[-1]), num_heads
        share_GTT = _softmax_(_product(query_GTK, key_value[0].mT, ctx.scale))
        ctx.save_for_backward(query_GTK, key_value, share_GTT)
        return _back(torch.bmm(share_GTT, key_value[1])[None], num_heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BTD: Tensor) -> tuple[Tensor, Tensor, None]:
        query_GTK, key_value, share_GTT = ctx.saved_tensors
        (gradient_GTK,) = _side_by_side(gradient_BTD.contiguous(), 1, ctx.num_heads)
        of_share_GTT = torch.bmm(gradient_GTK, key_value[1].mT)
        of_score_GTT = share_GTT * (of_share_GTT - (of_share_GTT * share_GTT).sum(dim=-1, keepdim=True))
        of_query_GTK = _product(of_score_GTT, key_value[0], ctx.scale)
        of_key_GTK, of_value_GTK = _product(of_score_GTT.mT, query_GTK, ctx.scale), torch.bmm(share_GTT.mT, gradient_GTK)
        return _back(of_query_GTK[None], ctx.num_heads), _back(torch.stack([of_key_GTK, of_value_GTK]), ctx.num_heads), None


def _softmax_(score_GTT: Tensor) -> Tensor:
    """Softmax over the last axis, in place: torch's own takes five times as long for rows of a dozen numbers."""
    score_GTT.sub_(score_GTT.amax(dim=-1, keepdim=True)).exp_()
    return score_GTT.div_(score_GTT.sum(dim=-1, keepdim=True))


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Scale a b, in one pass."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
