"""MoE++: a transformer whose MLPs are experts of four kinds, two of which each token is sent to.

Jin et al. 2024 (arXiv 2410.07348; ICLR 2025), "MoE++: Accelerating Mixture-of-Experts Methods with Zero-Computation
Experts". Two differences from the paper: no capacity limit (its eq. 8), so that a sample's answer never depends on the
samples it is batched with; and the experts' input is not doubled, as the authors' code does though no equation says
so: a copy expert returns its input. Shape suffixes: B batch, T tokens (n modalities x P patches), D hidden, N = B T
tokens in a row, E experts, C outputs.
"""

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.config import Config
from training.model.dropout import Dropout
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion
from training.model.fusion.routing import expert_load
from training.model.fusion.stacked import StackedLinear
from training.model.fusion.transformer import AttentionBlock, SelfAttention, num_tokens, pool
from training.model.variants import PerturbedTokens

NUM_CONSTANT = 2
NUM_ZERO_COMPUTATION = NUM_CONSTANT + 2  # constant, copy, zero: the last positions, in this order


class Router(nn.Module):
    """G(x) = W_2 tanh(W_1 x) + W_g G', with G' the scores of the layer before (gating residual, eq. 6).

    The first layer has no W_g. Two linear maps in place of the paper's one, as in the code of its authors.
    """

    def __init__(self, hidden_dim: int, num_experts: int, *, is_first: bool) -> None:
        super().__init__()
        width = 8 * num_experts
        self.score = nn.Sequential(nn.Linear(hidden_dim, width, bias=False), nn.Tanh(), nn.Linear(width, num_experts, bias=False))
        self.carry = None if is_first else nn.Linear(num_experts, num_experts, bias=False)

    def forward(self, x_ND: Tensor, previous_NE: Tensor | None) -> Tensor:
        """Tokens (N, D) and the scores (N, E) of the layer before to scores (N, E)."""
        scores_NE = self.score(x_ND)
        if self.carry is not None:
            assert previous_NE is not None
            scores_NE = scores_NE + self.carry(previous_NE)
        return scores_NE.float()


def top_two(scores_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, E) to weights (N, E) and which two experts were chosen (N, E).

    Weights are the softmax of the scores over the chosen experts, the zero expert (the last) left out: a token that
    chose it goes to the other one alone. Equal to softmax over all, then renormalise, and never 0 / 0.
    """
    positions_E = torch.arange(scores_NE.shape[-1], device=scores_NE.device)
    chosen_NE = (scores_NE.topk(2, dim=-1).indices[..., None] == positions_E).any(dim=1)
    kept_NE = chosen_NE & (positions_E < scores_NE.shape[-1] - 1)
    return torch.softmax(scores_NE.masked_fill(~kept_NE, float("-inf")), dim=-1), chosen_NE


class Experts(nn.Module):
    """E - 4 FFN experts, then two constant experts, a copy expert and a zero expert (eq. 3-5).

    FFN: W_down (silu(a) * b), [a, b] = W_up x, of width `ffn_dim`. Constant: u x + v c, [u, v] = softmax(W_c x).
    Copy: x. Zero: 0. With E = 4 there is no FFN expert and no weight for one. Parameters: (E - 4) 3 D ffn_dim +
    2 (D + 2 D).
    """

    def __init__(self, hidden_dim: int, num_experts: int, ffn_dim: int) -> None:
        super().__init__()
        num_ffn = num_experts - NUM_ZERO_COMPUTATION
        self.up = StackedLinear(num_ffn, hidden_dim, 2 * ffn_dim, bias=False) if num_ffn else None
        self.down = StackedLinear(num_ffn, ffn_dim, hidden_dim, bias=False) if num_ffn else None
        self.constant = nn.Parameter(torch.randn(NUM_CONSTANT, hidden_dim))
        self.proportion = StackedLinear(NUM_CONSTANT, hidden_dim, 2, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Tokens (N, D) to every expert's answer (E, N, D)."""
        x_1ND = x_ND[None]
        kept, replaced = torch.softmax(self.proportion(x_1ND), dim=-1).chunk(2, dim=-1)
        constant = kept * x_1ND + replaced * self.constant[:, None]
        return torch.cat([*self._ffn(x_1ND), constant, x_1ND, torch.zeros_like(x_1ND)])

    def _ffn(self, x_1ND: Tensor) -> list[Tensor]:
        """One (E - 4, N, D), or nothing."""
        if self.up is None or self.down is None:
            return []
        gate, value = self.up(x_1ND).chunk(2, dim=-1)
        return [self.down(F.silu(gate) * value)]


class MoEPlusPlusLayer(AttentionBlock):
    """h = x + Drop(Attn(LN(x))); y = h + Drop(sum_e w_e E_e(LN(h))), w from `top_two`.

    Load-balancing loss, heterogeneous (eq. 7): sum_e eta_e f_e P_e with eta 1 for FFN experts and `tau` for the four
    others; f_e the share of tokens that chose e, P_e its mean softmax probability. All experts are computed for all
    tokens, in training too: they are narrow, and four of them cost nothing.
    """

    eta_E: Tensor

    def __init__(
        self, hidden_dim: int, num_heads: int, dropout: float, config: "MoEPlusPlusFusion.Config", *, is_first: bool
    ) -> None:
        super().__init__(hidden_dim, num_heads, dropout, "input")
        self.router = Router(hidden_dim, config.num_experts, is_first=is_first)
        self.experts = Experts(hidden_dim, config.num_experts, config.ffn_dim)
        num_ffn = config.num_experts - NUM_ZERO_COMPUTATION
        self.register_buffer("eta_E", torch.tensor([1.0] * num_ffn + [config.tau] * NUM_ZERO_COMPUTATION), persistent=False)

    def forward(self, x: Tensor | PerturbedTokens, previous_NE: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) or perturbed tokens, and the layer before's scores, to (B, T, D), this layer's scores (N, E) and loss ()."""
        x_ND = self.attend(x)
        normed_ND = self.mlp_norm(x_ND)
        scores_NE = self.router(normed_ND, previous_NE)
        weights_NE, chosen_NE = top_two(scores_NE)
        mixed_ND = (self.experts(normed_ND) * weights_NE.T[..., None]).sum(dim=0)
        loss = (self.eta_E * expert_load(torch.softmax(scores_NE, dim=-1), chosen_NE)).sum()
        return (x_ND + self.dropout(mixed_ND)).unflatten(0, (-1, num_tokens(x))), scores_NE, loss


class ReleasedLayer(nn.Module):
    """What the released I2MoE code's MoE++ layer computes: x + 2 Drop(Attn(LN(x))). Its experts are never reached."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_dim)
        self.attention = SelfAttention(hidden_dim, num_heads)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return x_BTD + 2 * self.dropout(self.attention(self.attention_norm(x_BTD)))


@register_fusion("moepp")
class MoEPlusPlusFusion(Fusion):
    """One expert: L MoE++ layers, each fed the one before and its scores, then mean per modality and a linear head.

    The gate loss is the sum over layers. Parameters: n P D + (n D C + C) + (L - 1) E^2 + L (4 D^2 + 5 D +
    (E - 4) 3 D ffn_dim + 6 D + 8 E D + 8 E^2).

    `num_experts` counts the four that compute nothing or next to nothing, as the papers do. With 4, which the I2MoE paper
    has for MIMIC-IV and MM-IMDb, these are all there are: `ffn_dim` has no meaning, no token meets a hidden layer, and what
    a layer adds to attention is a share of the token itself and of two learned vectors, chosen by the router.

    compat "released" is for imported checkpoints alone: every layer gets the same input, so that only the last one
    counts, and no token meets an expert. The layers before it hold weights (that tells a checkpoint of another depth)
    and are not run.
    """

    jumps = True

    class Config(Config):
        """Options of the MoE++ backbone."""

        num_experts: int = Field(default=8, ge=NUM_ZERO_COMPUTATION)  # FFN experts, perhaps none, + 2 constant + copy + zero
        ffn_dim: int = Field(default=64, ge=1)  # width of an FFN expert
        tau: float = Field(default=0.75, gt=0, le=1)  # less sends more tokens to the experts that compute nothing
        compat: Literal["paper", "released"] = "paper"

    def __init__(self, *, config: "MoEPlusPlusFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        num_modalities, hidden_dim = arguments["num_modalities"], arguments["hidden_dim"]
        self.position = nn.Parameter(torch.zeros(num_modalities * arguments["num_patches"], hidden_dim))
        self.layers = nn.ModuleList(self._layer(i, config, arguments) for i in range(arguments["num_layers"]))
        self.head = nn.Linear(num_modalities * hidden_dim, arguments["num_outputs"])

    @staticmethod
    def _layer(position: int, config: "MoEPlusPlusFusion.Config", arguments: FusionArguments) -> nn.Module:
        shape = arguments["hidden_dim"], arguments["num_heads"], arguments["dropout"]
        if config.compat == "released":
            return ReleasedLayer(*shape)
        return MoEPlusPlusLayer(*shape, config, is_first=position == 0)

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C) and the gate loss ()."""
        return self._answer(tokens_BnPD.flatten(1, 2) + self.position)

    def perturbed(self, tokens: PerturbedTokens) -> FusionOutput:
        """The same of all variants (V B, C)."""
        if isinstance(self.layers[-1], ReleasedLayer):
            return super().perturbed(tokens)
        return self._answer(tokens.placed(self.position))

    def _answer(self, x: Tensor | PerturbedTokens) -> FusionOutput:
        x_BTD, gate_loss = self._layers(x)
        latent_BK = pool(x_BTD, self.num_modalities).flatten(1)
        return FusionOutput(self.head(latent_BK), latent_BK, gate_loss)

    def _layers(self, x: Tensor | PerturbedTokens) -> tuple[Tensor, Tensor]:
        gate_loss = self.position.new_zeros(())
        if isinstance(self.layers[-1], ReleasedLayer):
            return self.layers[-1](x), gate_loss
        scores_NE = None
        for layer in self.layers:
            x, scores_NE, loss = layer(x, scores_NE)
            gate_loss = gate_loss + loss
        assert isinstance(x, Tensor)  # from the first layer on
        return x, gate_loss
