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
    assert_rows_are_independent(fusion("late", 3))


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_parameter_count(n: int, hidden: tuple[int, ...]) -> None:
    """Weights number what the layer sizes of one modality add up to, for each modality."""
    widths = [NUM_PATCHES * HIDDEN_DIM, *hidden, NUM_OUTPUTS]
    wanted = n * sum(a * b + b for a, b in itertools.pairwise(widths))
    assert wanted == num_parameters(fusion("late", n, {"hidden": hidden}))


def decision(model: torch.nn.Module, modality: int, x: torch.Tensor) -> torch.Tensor:
    """What one modality's tokens (B, P, D) alone decide, written out."""
    for layer in model.layers[modality]:
        if isinstance(layer, torch.nn.Linear):
            last = x.flatten(1) @ layer.weight.T + layer.bias
            x = last.clamp(min=0)
    head = model.heads[modality]
    return x.flatten(1) @ head.weight.T + head.bias


@pytest.mark.parametrize("hidden", HIDDEN)
def test_logits_are_the_mean_of_the_decisions(hidden: tuple[int, ...]) -> None:
    """Each head reads its own modality and nothing else; the answer is their mean."""
    model, x = fusion("late", 4, {"hidden": hidden}).eval(), tokens(4, 5)
    with torch.no_grad():
        wanted = torch.stack([decision(model, m, x[:, m]) for m in range(4)]).mean(dim=0)
        torch.testing.assert_close(model(x).logits_BC, wanted)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_another_modality_changes_its_own_term_alone(n: int) -> None:
    """Replacing one modality moves the logits by its own head's change, whatever the other modalities are."""
    model, x, y, other = fusion("late", n).eval(), tokens(n, 8), tokens(n, 8, seed=2), tokens(n, 8, seed=3)
    with torch.no_grad():
        for m in range(n):
            moved = [
                model(torch.cat([z[:, :m], y[:, m : m + 1], z[:, m + 1 :]], dim=1)).logits_BC
                - model(torch.cat([z[:, :m], x[:, m : m + 1], z[:, m + 1 :]], dim=1)).logits_BC
                for z in (x, other)
            ]
            wanted = (decision(model, m, y[:, m]) - decision(model, m, x[:, m])) / n
            assert wanted.abs().max() > 1e-3
            torch.testing.assert_close(moved[0], wanted, rtol=0, atol=1e-6)
            torch.testing.assert_close(moved[1], wanted, rtol=0, atol=1e-6)


def test_no_gradient_crosses_modalities() -> None:
    """A decision's own weights have a gradient with respect to its own tokens alone."""
    model, x = fusion("late", 3).eval(), tokens(3, 4).requires_grad_()
    with torch.no_grad():
        for m in (0, 2):
            model.heads[m].weight.zero_()
    (gradient,) = torch.autograd.grad(model(x).logits_BC.square().sum(), x)
    assert [bool(gradient[:, m].abs().sum() > 0) for m in range(3)] == [False, True, False]


def test_the_mean_of_logits_is_the_product_rule() -> None:
    """softmax of the mean is the normalised n-th root of the product of the modalities' own probabilities."""
    model, x = fusion("late", 3).eval(), tokens(3, 6)
    with torch.no_grad():
        product = torch.stack([decision(model, m, x[:, m]).softmax(dim=1) for m in range(3)]).prod(dim=0) ** (1 / 3)
        torch.testing.assert_close(model(x).logits_BC.softmax(dim=1), product / product.sum(dim=1, keepdim=True))


def test_the_head_reads_the_latent() -> None:
    """The heads side by side, over n, are one linear map of the latent."""
    model, x = fusion("late", 3).eval(), tokens(3, 4)
    with torch.no_grad():
        output = model(x)
        weight = torch.cat([head.weight for head in model.heads], dim=1) / 3
        bias = torch.stack([head.bias for head in model.heads]).mean(dim=0)
        torch.testing.assert_close(output.logits_BC, output.latent_BK @ weight.T + bias)


def test_there_is_no_gate_loss() -> None:
    """The gate loss is zero in both modes."""
    model, x = fusion("late", 3), tokens(3, 4)
    assert [model.train(mode)(x).gate_loss.item() for mode in (True, False)] == [0.0, 0.0]


@pytest.mark.parametrize(("n", "hidden"), [(2, ()), (3, (16, 5)), (6, (128,))])
def test_exports(n: int, hidden: tuple[int, ...]) -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("late", n, {"hidden": hidden}))
