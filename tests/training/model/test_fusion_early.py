import itertools

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

HIDDEN = [(), (128,), (16, 5)]


def test_rows_are_independent() -> None:
    """The answer to a row does not depend on the rows it is batched with."""
    assert_rows_are_independent(fusion("early", 3))


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_parameter_count(n: int, hidden: tuple[int, ...]) -> None:
    """Weights number what the layer sizes add up to."""
    widths = [n * NUM_PATCHES * HIDDEN_DIM, *hidden, NUM_OUTPUTS]
    wanted = sum(a * b + b for a, b in itertools.pairwise(widths))
    assert wanted == num_parameters(fusion("early", n, {"hidden": hidden}))


def test_it_is_one_network_over_all_tokens() -> None:
    """The model is what its definition says, written out."""
    model, x = fusion("early", 3, {"hidden": (16, 5)}).eval(), tokens(3, 4)
    wanted = x.reshape(4, -1)
    with torch.no_grad():
        for linear in (model.layers[0], model.layers[3]):
            wanted = (wanted @ linear.weight.T + linear.bias).clamp(min=0)
        output = model(x)
        torch.testing.assert_close(output.latent_BK, wanted)
        torch.testing.assert_close(output.logits_BC, wanted @ model.head.weight.T + model.head.bias)


def test_modalities_meet() -> None:
    """What one modality adds depends on another: logits are no sum of one term per modality."""
    model, x, y = fusion("early", 2).eval(), tokens(2, 8), tokens(2, 8, seed=2)
    with torch.no_grad():
        mixed = [model(torch.stack([first[:, 0], second[:, 1]], dim=1)).logits_BC for first in (x, y) for second in (x, y)]
    assert not torch.allclose(mixed[0] - mixed[1], mixed[2] - mixed[3], atol=1e-3)


def test_without_hidden_layers_it_is_linear() -> None:
    """No hidden width: one linear map, which reads the tokens themselves."""
    model, x = fusion("early", 2, {"hidden": ()}, dropout=0.9).train(), tokens(2, 4)
    torch.testing.assert_close(model(x).logits_BC, model.head(x.flatten(1)), rtol=0, atol=0)


def test_there_is_no_gate_loss() -> None:
    """The gate loss is zero in both modes."""
    model, x = fusion("early", 3), tokens(3, 4)
    assert [model.train(mode)(x).gate_loss.item() for mode in (True, False)] == [0.0, 0.0]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_exports(hidden: tuple[int, ...]) -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("early", 3, {"hidden": hidden}))
