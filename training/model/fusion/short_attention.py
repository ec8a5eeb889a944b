"""Attention over few tokens, for training on the CPU: batched matrix products on heads laid out side by side.

torch's fused attention is made for long sequences: for two to a dozen tokens it takes up to twice as long as these products on
one or two cores, and gains little from the second. From some fifty tokens on it is the faster one and stays in use.
Shape suffixes: B batch, T tokens (queries; keys may be others), D hidden, H heads, K head width, G = B H.
Those of `training.model.variants` where variants of a sample share tokens.
"""

import math
from typing import Any

import torch
from torch import Tensor

from training.model.variants import Variants

_LONGEST = 48  # tokens up to which this pays


def pays(query: Tensor, num_tokens: int) -> bool:
    """Whether `short_attention` is the faster one here."""
    return num_tokens <= _LONGEST and query.device.type == "cpu" and query.dtype == torch.float32


def short_attention(query_BTD: Tensor, key_value_BTE: Tensor, num_heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V by heads, (B, T, D); `key_value_BTE` holds keys, then values, E = 2 D."""
    mixed_BTD: Tensor = _ShortAttention.apply(query_BTD, key_value_BTE, num_heads, None)
    return mixed_BTD


def short_attention_of_variants(query_ND: Tensor, key_value_NE: Tensor, num_heads: int, variants: Variants) -> Tensor:
    """The same where variants share tokens: (N, D) and (N, E), each token once, to every variant's (V B, T, D)."""
    mixed_BTD: Tensor = _ShortAttention.apply(query_ND, key_value_NE, num_heads, variants)
    return mixed_BTD


def _side_by_side(x: Tensor, num_parts: int, num_heads: int, variants: Variants | None) -> Tensor:
    """(B, T, parts D), or (N, parts D) of `variants`, to (parts, G, T, K); for variants B is V B."""
    if variants is None:
        parts = x.view(*x.shape[:2], num_parts, num_heads, -1).permute(2, 0, 3, 1, 4)
        return parts.reshape(num_parts, -1, x.shape[1], parts.shape[-1])
    x_NpHK = x.unflatten(1, (num_parts, num_heads, -1))
    v, b, n, p = variants.axes
    all_pVBHnPK = x.new_empty(num_parts, v, b, num_heads, n, p, x_NpHK.shape[-1])
    variants.fill(all_pVBHnPK.permute(1, 2, 4, 5, 0, 3, 6), x_NpHK)
    return all_pVBHnPK.flatten(4, 5).flatten(1, 3)


def _back(x: Tensor, num_heads: int, variants: Variants | None) -> Tensor:
    """(parts, G, T, K) to (B, T, parts D), or to (N, parts D), summed over variants that share a token."""
    if variants is None:
        return x.unflatten(1, (-1, num_heads)).permute(1, 3, 0, 2, 4).flatten(2)
    v, b, n, p = variants.axes
    all_pVBHnPK = x.unflatten(2, (n, p)).unflatten(1, (v, b, num_heads))
    return variants.collect(all_pVBHnPK.permute(1, 2, 4, 5, 0, 3, 6)).flatten(1)


class _ShortAttention(torch.autograd.Function):
    """Forward and backward by hand.

    With P = softmax(S), S = scale Q K^T, O = P V and G the gradient of O:

    dV = P^T G,  dP = G V^T,  dS = P (dP - rowsum(dP P)),  dQ = scale dS K,  dK = scale dS^T Q
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key_value: Tensor, num_heads: int, variants: Variants | None) -> Tensor:
        (query_GTK,) = _side_by_side(query, 1, num_heads, variants)
        key_GTK, value_GTK = _side_by_side(key_value, 2, num_heads, variants)
        ctx.scale, ctx.num_heads, ctx.variants = 1 / math.sqrt(query_GTK.shape[-1]), num_heads, variants
        share_GTT = _softmax_(_product(query_GTK, key_GTK.mT, ctx.scale))
        ctx.save_for_backward(query_GTK, key_GTK, value_GTK, share_GTT)
        return _back(torch.bmm(share_GTT, value_GTK)[None], num_heads, None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BTD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query_GTK, key_GTK, value_GTK, share_GTT = ctx.saved_tensors
        (gradient_GTK,) = _side_by_side(gradient_BTD.contiguous(), 1, ctx.num_heads, None)
        of_share_GTT = torch.bmm(gradient_GTK, value_GTK.mT)
        of_score_GTT = share_GTT * (of_share_GTT - (of_share_GTT * share_GTT).sum(dim=-1, keepdim=True))
        of_query_GTK = _product(of_score_GTT, key_GTK, ctx.scale)
        of_key_value = torch.stack([_product(of_score_GTT.mT, query_GTK, ctx.scale), torch.bmm(share_GTT.mT, gradient_GTK)])
        of_query, of_key_value = (_back(x, ctx.num_heads, ctx.variants) for x in (of_query_GTK[None], of_key_value))
        return of_query, of_key_value, None, None


def _softmax_(score_GTT: Tensor) -> Tensor:
    """Softmax over the last axis, in place: torch's own takes five times as long for rows of a dozen numbers."""
    score_GTT.sub_(score_GTT.amax(dim=-1, keepdim=True)).exp_()
    return score_GTT.div_(score_GTT.sum(dim=-1, keepdim=True))


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Scale a b, in one pass."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
