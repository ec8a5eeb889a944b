"""The reweighting network: each sample's own weight for every expert."""

import itertools

import torch
from torch import Tensor, nn

from training.model.dropout import Dropout


class Reweighting(nn.Module):
    """w = softmax(MLP(concat_m mean_P(tokens_m)) / temperature) (I2MoE section 3.3).

    `num_layers` 1 is a single Linear; k >= 2 is Linear, ReLU, Dropout, (Linear, ReLU, Dropout) x (k - 2), Linear.
    Parameters for k = 1: n D E + E; for k >= 2: n D h + h + (k - 2)(h^2 + h) + h E + E.
    """

    def __init__(
        self, *, in_dim: int, hidden_dim: int, num_layers: int, num_experts: int, temperature: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.temperature = temperature
        widths = [in_dim, *([hidden_dim] * (num_layers - 1))]
        hidden = [(nn.Linear(a, b), nn.ReLU(), Dropout(dropout)) for a, b in itertools.pairwise(widths)]
        self.mlp = nn.Sequential(*itertools.chain.from_iterable(hidden), nn.Linear(widths[-1], num_experts))

    def forward(self, tokens_BnPD: Tensor) -> Tensor:
        """(B, n, P, D) to weights (B, E) that are positive and sum to 1."""
        pooled_BnD = tokens_BnPD.mean(dim=2)
        return torch.softmax(self.mlp(pooled_BnD.flatten(1)).float() / self.temperature, dim=-1)


class SimpleWeights(nn.Module):
    """The paper's ablation "simple weight": softmax of one learned vector (E,), the same for every sample.

    Starts at 1 / E each, as the released code does, so all weights are equal.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((num_experts,), 1 / num_experts))

    def forward(self, tokens_BnPD: Tensor) -> Tensor:
        """(B, n, P, D) to weights (B, E)."""
        return torch.softmax(self.weights, dim=0).expand(tokens_BnPD.shape[0], -1)
