"""Dropout: which elements, how many, by how much the others grow; what other devices and evaluation do."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from training.model.dropout import Dropout, keep_mask


@pytest.mark.parametrize("rate", [0.1, 0.125, 0.25, 0.375, 0.5, 0.75, 0.8125, 0.9, 1 / 3, 5 / 256])
def test_elements_are_dropped_at_the_rate_and_the_mean_stays(rate: float) -> None:
    """A million elements: the share of zeros within five standard errors, all others scaled alike, expectation 1."""
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1000, 1000), rate)
    kept = mask[mask > 0]
    assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 1e6) ** 0.5)
    assert len(kept.unique()) == 1
    assert float(kept[0]) == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_elements_are_independent() -> None:
    """Neighbours, elements of one random word and columns are dropped together as often as chance has it."""
    torch.manual_seed(1)
    dropped = (keep_mask(torch.empty(4000, 256), 0.3) == 0).double()
    for shift in (1, 2, 3, 4, 64):
        together = (dropped[:, shift:] * dropped[:, :-shift]).mean()
        assert float(together) == pytest.approx(0.09, abs=0.002)
    assert float((dropped.mean(dim=0) - 0.3).abs().max()) < 5 * (0.21 / 4000) ** 0.5
    assert float((dropped.mean(dim=1) - 0.3).abs().max()) < 5 * (0.21 / 256) ** 0.5


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.625])
def test_elements_of_one_random_byte_are_independent(rate: float) -> None:
    """Elements that share a byte stand an eighth, a quarter or a half of all apart: dropped together as chance has it."""
    torch.manual_seed(2)
    dropped = (keep_mask(torch.empty(800, 1000), rate) == 0).double().view(8, -1)
    together = dropped @ dropped.T / dropped.shape[1]
    expected = torch.full((8, 8), rate**2).fill_diagonal_(rate)
    torch.testing.assert_close(together, expected.double(), atol=0.008, rtol=0)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (2, 3, 4, 5)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    """Also one whose size is no multiple of what a random word serves, and views that are not contiguous."""
    layer = Dropout(0.5)
    assert layer(torch.ones(shape)).shape == shape
    assert layer(torch.ones(6, 4).T).shape == (4, 6)


def test_gradients_pass_where_values_do() -> None:
    """The gradient is the mask."""
    x = torch.ones(64, 8, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_nothing_happens_in_evaluation_or_at_rate_zero() -> None:
    """The same tensor; the generator is not touched."""
    x, state = torch.randn(4), torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_everything_is_dropped_at_rate_one() -> None:
    """As torch has it."""
    assert torch.equal(Dropout(1.0)(torch.ones(9)), torch.zeros(9))


def test_the_seed_decides() -> None:
    """The same seed, the same mask; the next call, another."""
    layer, x = Dropout(0.5), torch.ones(50)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_half_precision_keeps_its_type() -> None:
    """Under autocast activations are bfloat16."""
    assert Dropout(0.5)(torch.ones(8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_it_is_a_dropout_of_torch_and_agrees_with_it_on_the_mean() -> None:
    """Whoever looks for nn.Dropout finds it; means and deviations are those of torch's."""
    layer = Dropout(0.2)
    assert isinstance(layer, nn.Dropout)
    torch.manual_seed(0)
    x = torch.randn(2000, 100)
    ours, theirs = layer(x), F.dropout(x, 0.2)
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.01)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.01)
