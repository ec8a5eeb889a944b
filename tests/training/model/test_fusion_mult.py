import pytest
import torch

from tests.training.model.fusion_cases import (
    HIDDEN_DIM,
    NUM_OUTPUTS,
    NUM_PATCHES,
    assert_exports,
    assert_rows_are_independent,
    fusion,
    num_parameters,
    tokens,
)
from training.model.fusion.mult import CrossAttention, CrossLayer, ordered_pairs
from training.model.fusion.transformer import SelfAttention


def test_rows_are_independent() -> None:
    """The answer to a row does not depend on the rows it is batched with."""
    assert_rows_are_independent(fusion("mult", 3))


@pytest.mark.parametrize(("n", "num_layers", "num_self_layers"), [(2, 1, 1), (3, 2, 1), (6, 1, 2)])
def test_parameter_count(n: int, num_layers: int, num_self_layers: int) -> None:
    """Weights number what the layer sizes add up to."""
    d, w = HIDDEN_DIM, (n - 1) * HIDDEN_DIM
    cross, memory = num_layers * n * (n - 1) * (8 * d**2 + 10 * d), num_self_layers * n * (8 * w**2 + 8 * w)
    wanted = n * NUM_PATCHES * d + cross + memory + n * w * NUM_OUTPUTS + NUM_OUTPUTS
    assert wanted == num_parameters(fusion("mult", n, {"num_self_layers": num_self_layers}, num_layers=num_layers))


def test_pairs() -> None:
    """Every modality is a target of every other, targets first in order."""
    assert ordered_pairs(3) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_pairs_at_once_are_pairs_one_by_one() -> None:
    """Attention over stacked pairs is that of one pair after the other; onto itself it is self-attention."""
    torch.manual_seed(0)
    attention, target, source = CrossAttention(3, 8, 2), torch.randn(3, 4, 5, 8), torch.randn(3, 4, 5, 8)
    plain = SelfAttention(8, 2)
    with torch.no_grad():
        for pair in range(3):
            single = CrossAttention(1, 8, 2)
            single.load_state_dict({name: tensor[pair : pair + 1] for name, tensor in attention.state_dict().items()})
            wanted = single(target[pair][None], source[pair][None])[0]
            torch.testing.assert_close(attention(target, source)[pair], wanted, rtol=0, atol=1e-6)
            for name in ("query", "key_value", "projection"):
                getattr(plain, name).weight.copy_(getattr(attention, name).weight_SOI[pair])
            plain.projection.bias.copy_(attention.projection.bias_SO[pair])
            torch.testing.assert_close(attention(target, target)[pair], plain(target[pair]), rtol=0, atol=1e-6)


def test_attention_is_directed() -> None:
    """Queries come from the target, keys and values from the source: without the source's values nothing remains."""
    torch.manual_seed(0)
    attention, x = CrossAttention(1, 8, 2), torch.randn(1, 2, 3, 8)
    with torch.no_grad():
        attention.projection.bias_SO.zero_()
        nothing = attention(x, torch.zeros_like(x))
        uniform = attention(torch.zeros_like(x), x)
    assert torch.equal(torch.zeros_like(x), nothing)
    torch.testing.assert_close(uniform[:, :, 0], uniform[:, :, 1])


def test_pair_by_pair() -> None:
    """The model is what its definition says, written out: one stream per pair, each layer reading the source's tokens."""
    n, model = 3, fusion("mult", 3, dropout=0.0).eval()
    with torch.no_grad():
        model.position.normal_()
        x = tokens(n, 4) + model.position
        pooled = []
        for target in range(n):
            streams = []
            for source in (s for s in range(n) if s != target):
                stream = x[:, target]
                for layer in model.cross:
                    single = CrossLayer(1, HIDDEN_DIM, 2, 0.0)
                    pair = ordered_pairs(n).index((target, source))
                    single.load_state_dict({name: tensor[pair : pair + 1] for name, tensor in layer.state_dict().items()})
                    stream = single(stream[None], x[None, :, source])[0]
                streams.append(stream)
            pooled.append(model.memories[target](torch.cat(streams, dim=-1)).mean(dim=1))
        wanted = model.head(torch.cat(pooled, dim=-1))
        torch.testing.assert_close(model(tokens(n, 4)).logits_BC, wanted, rtol=0, atol=1e-6)


def test_there_is_no_gate_loss() -> None:
    """The gate loss is zero in both modes."""
    model, x = fusion("mult", 3), tokens(3, 4)
    assert [model.train(mode)(x).gate_loss.item() for mode in (True, False)] == [0.0, 0.0]


@pytest.mark.parametrize("num_modalities", [2, 3, 6])
def test_exports(num_modalities: int) -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("mult", num_modalities))
