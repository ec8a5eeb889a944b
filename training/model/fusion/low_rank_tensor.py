"""Low-rank tensor fusion: products of all subsets of modalities, weighed by a tensor that is never built.

Liu et al. 2018 (ACL; arXiv 1806.00064), "Efficient Low-rank Multimodal Fusion With Modality-Specific Factors". The outer
product of the vectors [1; z_m] holds every product of features of different modalities. A weight tensor of rank R over
it is R factors per modality, and applying it is an elementwise product of n small maps. The I2MoE paper calls it LRMF,
its released code LRTF; there the factors lie in a Python list, neither trained nor saved: a fixed random projection
behind which the head alone learns. Here they are parameters. Shape suffixes: B batch, n modalities, P patches,
D hidden, R rank, T entries of the fused vector, C outputs.
"""

import functools
import math
from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.config import Config
from training.model.dropout import Dropout
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion


def xavier_normal(*shape: int, fan_in: int, fan_out: int) -> Tensor:
    """N(0, 2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 12), for tensors whose shape does not tell its fans."""
    return math.sqrt(2 / (fan_in + fan_out)) * torch.randn(shape)


class LowRankProduct(nn.Module):
    """h = sum_r w_r prod_m [1; z_m] F_m,r + b, the product elementwise (Liu et al. 2018; w_r is their code's).

    Row 0 of every F, which meets the 1, is in `factors_bias`, the others in `factors`. Parameters: n R (D + 1) T + R + T.

    A product of n maps vanishes or explodes unless each is close to 1. The usual start, `xavier_normal_` of an
    (R, D + 1, T) tensor, takes R T for a fan: for z of unit mean square, one map then has 2 (D + 1) / ((R + D + 1) T),
    which at D = 128, R = 32, T = 64 is 0.025, and the product of six 2e-10. Here a map starts as 1 + x: row 0 at 1, the
    others by the fans of one map, D to T, over sqrt(n). x has a mean square of 2 D / (n (D + T)), so the product's is
    at least 1, however small z is, and below (1 + 2 / n)^n < e^2, however many modalities there are.
    """

    def __init__(self, num_modalities: int, in_dim: int, rank: int, out_dim: int) -> None:
        super().__init__()
        factors = xavier_normal(num_modalities, in_dim, rank, out_dim, fan_in=in_dim, fan_out=out_dim)
        self.factors = nn.Parameter(factors / math.sqrt(num_modalities))
        self.factors_bias = nn.Parameter(torch.ones(num_modalities, rank, out_dim))
        self.rank_weights = nn.Parameter(xavier_normal(rank, fan_in=rank, fan_out=1))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, z_nBD: Tensor) -> Tensor:
        """(n, B, D) to (B, T)."""
        maps_nBRT = torch.matmul(z_nBD, self.factors.flatten(2)).unflatten(-1, self.factors_bias.shape[1:])
        product_BRT = functools.reduce(torch.mul, (maps_nBRT + self.factors_bias[:, None]).unbind(dim=0))
        return (self.rank_weights[:, None] * product_BRT).sum(dim=1) + self.bias


@register_fusion("low_rank_tensor")
class LowRankTensorFusion(Fusion):
    """One expert: z_m = mean_P(x_m), their `LowRankProduct`, then Linear, ReLU, Dropout, Linear.

    No router: the gate loss is 0. `num_layers` and `num_heads` have no meaning here. Parameters, with T = `tensor_dim` and
    h = `head_dim`: n R (D + 1) T + R + T + (T h + h) + (h C + C).
    """

    class Config(Config):
        """Options of low-rank tensor fusion; the defaults are the released I2MoE code's."""

        rank: int = Field(default=32, ge=1)  # of the weight tensor
        tensor_dim: int = Field(default=64, ge=1)  # entries of the fused vector
        head_dim: int = Field(default=128, ge=1)  # hidden layer between the fused vector and the logits

    def __init__(self, *, config: "LowRankTensorFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        self.product = LowRankProduct(self.num_modalities, arguments["hidden_dim"], config.rank, config.tensor_dim)
        self.expand = nn.Linear(config.tensor_dim, config.head_dim)
        self.dropout = Dropout(arguments["dropout"])
        self.head = nn.Linear(config.head_dim, arguments["num_outputs"])

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C); the gate loss is 0."""
        fused_BT = self.product(tokens_BnPD.mean(dim=2).transpose(0, 1))
        latent_BK = self.dropout(F.relu(self.expand(fused_BT)))
        return FusionOutput(self.head(latent_BK), latent_BK, latent_BK.new_zeros(()))
