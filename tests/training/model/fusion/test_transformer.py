import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from training.model.fusion.transformer import SelfAttention, TransformerFusion, TransformerLayer

# d, layers, patches, modalities, classes -> parameters of one expert (facts of the paper's Table 6)
MULT = [
    ((256, 2, 16, 4, 3), 1_072_131),
    ((128, 2, 8, 3, 2), 268_034),
    ((256, 2, 8, 2, 23), 1_068_567),
    ((256, 2, 16, 2, 23), 1_072_663),
    ((128, 1, 4, 3, 2), 134_402),
    ((256, 1, 4, 2, 20), 538_644),
]


def without_effect(num_outputs: int) -> TransformerFusion:
    """Position, pooling and head, and a layer that adds nothing: two modalities of three tokens of width four."""
    fusion = TransformerFusion(
        config=TransformerFusion.Config(),
        num_modalities=2,
        num_patches=3,
        hidden_dim=4,
        num_layers=1,
        num_heads=1,
        num_outputs=num_outputs,
        dropout=0.0,
    )
    (layer,) = fusion.layers
    assert isinstance(layer, TransformerLayer)
    for last in (layer.attention.projection, layer.contract):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return fusion


@pytest.mark.parametrize(("dims", "wanted"), MULT)
def test_an_expert_has_the_published_number_of_parameters(dims: tuple[int, ...], wanted: int) -> None:
    """MulT(d, L, P, n, C) = L (8 d^2 + 8 d) + P n d + (n d C + C)."""
    d, layers, patches, n, classes = dims
    fusion = TransformerFusion(
        config=TransformerFusion.Config(),
        num_modalities=n,
        num_patches=patches,
        hidden_dim=d,
        num_layers=layers,
        num_heads=1,
        num_outputs=classes,
        dropout=0.0,
    )
    assert sum(p.numel() for p in fusion.parameters()) == wanted


@pytest.mark.parametrize(("d", "wanted"), [(128, 132_096), (256, 526_336)])
def test_a_layer_has_the_published_number_of_parameters(d: int, wanted: int) -> None:
    """One layer is 8 d^2 + 8 d."""
    assert sum(p.numel() for p in TransformerLayer(d, 1, 0.0, "input").parameters()) == wanted


def layer_norm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def by_hand(x: NDArray[np.float64], layer: TransformerLayer, residual: str, num_heads: int) -> NDArray[np.float64]:
    """The layer in numpy, one sample of (tokens, channels): attention head by head, exact GELU."""
    w = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    u = layer_norm(x) * w["attention_norm.weight"] + w["attention_norm.bias"]
    d = x.shape[1]
    query, key, value = u @ w["attention.query.weight"].T, *np.split(u @ w["attention.key_value.weight"].T, [d], axis=1)
    heads = []
    for h in range(num_heads):
        part = slice(h * d // num_heads, (h + 1) * d // num_heads)
        scores = np.exp(query[:, part] @ key[:, part].T / math.sqrt(d // num_heads))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:, part])
    attended = np.concatenate(heads, axis=1) @ w["attention.projection.weight"].T + w["attention.projection.bias"]
    x = 2 * attended if residual == "released" else x + attended
    hidden = layer_norm(x) * w["mlp_norm.weight"] + w["mlp_norm.bias"]
    hidden = hidden @ w["expand.weight"].T + w["expand.bias"]
    hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + hidden @ w["contract.weight"].T + w["contract.bias"]


@pytest.mark.parametrize("residual", ["input", "released"])
def test_a_layer_computes_its_formula(residual: str) -> None:
    """ "input": x + Attn(LN(x)); "released": 2 Attn(LN(x)), the input is lost; then x + MLP(LN(x))."""
    torch.manual_seed(0)
    layer = TransformerLayer(8, 2, 0.5, residual).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(3, 5, 8)
    found = layer(x).detach().numpy()
    for row in range(3):
        np.testing.assert_allclose(found[row], by_hand(x[row].double().numpy(), layer, residual, 2), atol=1e-5)


def test_released_dropout_acts_on_one_of_two_terms() -> None:
    """In training the released block is a + Drop(a): where dropout drops everything, a is left."""
    torch.manual_seed(0)
    layer = TransformerLayer(8, 2, 0.999, "released").train()
    with torch.no_grad():
        layer.contract.weight.zero_()
        layer.contract.bias.zero_()
        x = torch.randn(2, 4, 8)
        attended = layer.attention(layer.attention_norm(x))
        torch.testing.assert_close(layer(x), attended)


def test_heads_must_divide_the_width() -> None:
    """The message has both numbers."""
    with pytest.raises(ValueError, match="hidden_dim must be a multiple of num_heads, found 8 and 3"):
        SelfAttention(8, 3)


def test_modalities_are_pooled_apart() -> None:
    """The head reads each modality's mean token: the head's weights of one modality see nothing of another."""
    torch.manual_seed(0)
    fusion = without_effect(num_outputs=2).eval()
    tokens = torch.randn(5, 2, 3, 4)
    wanted = tokens.mean(dim=2).flatten(1) @ fusion.head.weight.T + fusion.head.bias
    torch.testing.assert_close(fusion(tokens).logits_BC, wanted)


def test_positions_tell_tokens_apart() -> None:
    """The learned position starts at zero and is added to each token of each modality."""
    fusion = without_effect(num_outputs=1)
    assert fusion.position.shape == (6, 4)
    assert (fusion.position == 0).all()
    tokens = torch.randn(1, 2, 3, 4)
    before = fusion(tokens).logits_BC
    with torch.no_grad():
        fusion.position[3] += 3.0
    moved = fusion(tokens).logits_BC - before
    torch.testing.assert_close(moved, (fusion.head.weight[:, 4:].sum() * 3.0 / 3).reshape(1, 1))
