import pytest
import torch

from training.model.reweighting import Reweighting

# modalities, d, hidden, layers -> parameters (the paper's Table 6)
COUNTS = [
    ((4, 256, 256, 2), 263_942),
    ((3, 128, 128, 2), 49_925),
    ((2, 256, 256, 2), 132_356),
    ((3, 128, 1, 1), 1_925),
    ((2, 256, 256, 3), 198_148),
]


@pytest.mark.parametrize(("dims", "wanted"), COUNTS)
def test_parameter_counts_are_the_papers(dims: tuple[int, ...], wanted: int) -> None:
    """RW(1) = n d E + E; RW(k) = n d h + h + (k - 2)(h^2 + h) + h E + E."""
    n, d, hidden, layers = dims
    reweighting = Reweighting(in_dim=n * d, hidden_dim=hidden, num_layers=layers, num_experts=n + 2)
    assert sum(p.numel() for p in reweighting.parameters()) == wanted


def test_weights_are_a_softmax_of_mean_tokens_over_temperature() -> None:
    """w = softmax(Linear(concat of each modality's mean token) / temperature)."""
    torch.manual_seed(0)
    reweighting = Reweighting(in_dim=6, hidden_dim=1, num_layers=1, num_experts=4, temperature=2.5).eval()
    tokens = torch.randn(7, 2, 5, 3)
    wanted = torch.softmax(reweighting.mlp[0](tokens.mean(dim=2).flatten(1)) / 2.5, dim=1)
    torch.testing.assert_close(reweighting(tokens), wanted)


def test_layers_follow_the_released_order() -> None:
    """Linear, ReLU, Dropout for every hidden layer, then Linear: positions 0, 3, 6 hold weights, as released files do."""
    mlp = Reweighting(in_dim=4, hidden_dim=3, num_layers=3, num_experts=4).mlp
    assert [type(m).__name__ for m in mlp] == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
