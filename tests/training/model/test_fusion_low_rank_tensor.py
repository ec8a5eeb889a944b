import itertools
import string

import pytest
import torch

from tests.training.model.fusion_cases import (
    HIDDEN_DIM,
    NUM_OUTPUTS,
    assert_exports,
    assert_rows_are_independent,
    fusion,
    num_parameters,
    tokens,
)
from training.model.fusion.low_rank_tensor import LowRankProduct, xavier_normal

MODALITIES = [2, 3, 4, 5, 6]


def test_rows_are_independent() -> None:
    """The answer to a row does not depend on the rows it is batched with, and a batch of one is a batch."""
    assert_rows_are_independent(fusion("low_rank_tensor", 3))


@pytest.mark.parametrize(("n", "r", "t", "h"), [(2, 32, 64, 128), (5, 3, 4, 7), (6, 1, 1, 1)])
def test_parameter_count(n: int, r: int, t: int, h: int) -> None:
    """Weights number what the formula says, every factor among them."""
    wanted = n * r * (HIDDEN_DIM + 1) * t + r + t + (t * h + h) + (h * NUM_OUTPUTS + NUM_OUTPUTS)
    model = fusion("low_rank_tensor", n, {"rank": r, "tensor_dim": t, "head_dim": h})
    assert wanted == num_parameters(model)
    assert model.state_dict()["product.factors"].numel() == n * r * HIDDEN_DIM * t


@pytest.mark.parametrize("n", [2, 3, 4])
def test_it_is_the_full_tensor(n: int) -> None:
    """The product of small maps is the weight tensor of rank R, built, applied to the outer product of all [1; z_m]."""
    torch.manual_seed(0)
    product, z_nBD = LowRankProduct(n, 3, 2, 5), torch.randn(n, 4, 3)
    letters = string.ascii_lowercase[:n]
    with torch.no_grad():
        product.factors_bias.normal_()
        product.bias.normal_()
        ones = torch.cat([torch.ones(n, 4, 1), z_nBD], dim=-1)
        factors = torch.cat([product.factors_bias[:, None], product.factors], dim=1)  # (n, D + 1, R, T)
        outer = torch.einsum(",".join(f"z{a}" for a in letters) + "->z" + letters, *ones)
        weights = torch.einsum(",".join(f"{a}rt" for a in letters) + ",r->" + letters + "t", *factors, product.rank_weights)
        wanted = torch.einsum(f"z{letters},{letters}t->zt", outer, weights) + product.bias
        torch.testing.assert_close(product(z_nBD), wanted)


@pytest.mark.parametrize("n", MODALITIES)
@pytest.mark.parametrize("hidden_dim", [8, 64, 256])
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0])
def test_products_neither_vanish_nor_explode(n: int, hidden_dim: int, size: float) -> None:
    """At the start an entry of the fused vector has a root mean square between 0.5 and 6, whatever n, D and the tokens' size."""
    torch.manual_seed(0)
    with torch.no_grad():
        fused = torch.cat([LowRankProduct(n, hidden_dim, 32, 64)(size * torch.randn(n, 16, hidden_dim)) for _ in range(20)])
    assert 0.5 < fused.square().mean().sqrt().item() < 6


@pytest.mark.parametrize("n", MODALITIES)
def test_every_modality_moves_the_product_from_the_start(n: int) -> None:
    """No modality's gradient is lost among the others: all are of one order, and not small."""
    torch.manual_seed(0)
    z_nBD = (0.3 * torch.randn(n, 64, 32)).requires_grad_()
    (gradient,) = torch.autograd.grad(LowRankProduct(n, 32, 32, 64)(z_nBD).sum(), z_nBD)
    sizes = gradient.square().mean(dim=(1, 2)).sqrt()
    assert sizes.min() > 0.1
    assert sizes.max() < 3 * sizes.min()


def test_maps_start_at_one_with_the_fans_of_one_map() -> None:
    """Row 0 of every factor is 1; the others have the variance 2 / (D + T) / n, which the rank has no part in."""
    torch.manual_seed(0)
    for rank, in_dim, out_dim in ((32, 128, 64), (4, 300, 20)):
        product = LowRankProduct(3, in_dim, rank, out_dim)
        assert torch.equal(torch.ones(3, rank, out_dim), product.factors_bias.data)
        wanted = 2 / (in_dim + out_dim) / 3
        assert product.factors.var().item() == pytest.approx(wanted, rel=0.02)
    assert xavier_normal(1000, 100, fan_in=3, fan_out=5).var().item() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("n", MODALITIES)
def test_factors_are_trained(n: int) -> None:
    """Every factor of every modality and rank receives a gradient and moves in one step of the optimiser."""
    model, x = fusion("low_rank_tensor", n, dropout=0.0).train(), tokens(n, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(x).logits_BC, torch.arange(32) % NUM_OUTPUTS).backward()
    assert (model.product.factors.grad.abs().amax(dim=(1, 3)) > 0).all()  # per modality and rank
    assert (model.product.factors_bias.grad.abs().amax(dim=2) > 0).all()
    optimizer.step()
    assert [name for name, value in model.state_dict().items() if torch.equal(value, before[name])] == []


def test_subsets_of_modalities_interact() -> None:
    """With all other factors' rows at 1 alone, three modalities' joint effect is more than the sum of their own."""
    torch.manual_seed(0)
    product = LowRankProduct(3, 4, 8, 5)
    z_nBD = torch.randn(3, 6, 4)
    with torch.no_grad():
        signed = sum(
            (-1) ** (3 - sum(kept)) * product(z_nBD * torch.tensor(kept)[:, None, None])
            for kept in itertools.product((0, 1), repeat=3)
        )
    assert signed.abs().max() > 0.01  # the third-order difference of any sum over pairs is 0


def test_there_is_no_gate_loss() -> None:
    """The gate loss is zero in both modes."""
    model, x = fusion("low_rank_tensor", 3), tokens(3, 4)
    assert [model.train(mode)(x).gate_loss.item() for mode in (True, False)] == [0.0, 0.0]


@pytest.mark.parametrize("n", [2, 3, 6])
def test_exports(n: int) -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("low_rank_tensor", n))
