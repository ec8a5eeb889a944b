"""Attention over few tokens: torch's values and gradients, and where it is used."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.model.fusion.short_attention import pays, short_attention, short_attention_of_variants
from training.model.fusion.transformer import SelfAttention
from training.model.variants import Variants


def fused(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """torch's own."""
    parts = (query, *key_value.chunk(2, dim=-1))
    heads = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("batch", "tokens", "hidden", "heads"), [(3, 5, 8, 2), (1, 1, 4, 4), (2, 7, 6, 1)])
def test_values_and_gradients_are_those_of_torch(batch: int, tokens: int, hidden: int, heads: int) -> None:
    """In double precision, to its rounding; with a gradient that is not contiguous, too."""
    torch.manual_seed(0)
    query = torch.randn(batch, tokens, hidden, dtype=torch.float64, requires_grad=True)
    key_value = torch.randn(batch, tokens, 2 * hidden, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(batch, hidden, tokens, dtype=torch.float64).transpose(1, 2)
    results = []
    for attention in (short_attention, fused):
        mixed = attention(query, key_value, heads)
        results.append((mixed, *torch.autograd.grad(mixed, (query, key_value), upstream)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    """torch.autograd.gradcheck."""
    torch.manual_seed(1)
    query, key_value = (torch.randn(2, 3, w, dtype=torch.float64, requires_grad=True) for w in (4, 8))
    assert torch.autograd.gradcheck(lambda q, kv: short_attention(q, kv, 2), (query, key_value))


def test_gradients_of_variants_agree_with_finite_differences() -> None:
    """Where variants share tokens: gradcheck, and the values are those of every variant's tokens written out."""
    torch.manual_seed(1)
    variants = Variants(2, 3, 2, (0, 2))
    query, key_value = (torch.randn(20, w, dtype=torch.float64, requires_grad=True) for w in (4, 8))
    shared = short_attention_of_variants(query, key_value, 2, variants)
    written_out = short_attention(*(variants.spread(x).unflatten(0, (-1, 6)) for x in (query, key_value)), 2)
    torch.testing.assert_close(shared, written_out, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda q, kv: short_attention_of_variants(q, kv, 2, variants), (query, key_value))


def test_it_is_used_where_it_pays() -> None:
    """Few tokens, float32 on the CPU."""
    assert pays(torch.zeros(2, 12, 128), 12)
    assert not pays(torch.zeros(2, 65, 128), 65)
    assert not pays(torch.zeros(2, 12, 128, dtype=torch.bfloat16), 12)
    assert not pays(torch.zeros(2, 12, 128, device="meta"), 12)


def test_training_and_evaluation_answer_alike() -> None:
    """The module has no dropout of its own, so only the way of computing differs."""
    torch.manual_seed(2)
    attention, x = SelfAttention(64, 2), torch.randn(4, 6, 64)
    torch.testing.assert_close(attention.train()(x), attention.eval()(x), rtol=0, atol=1e-6)
