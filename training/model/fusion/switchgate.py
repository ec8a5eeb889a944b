"""SwitchGate: a transformer whose every other MLP is a set of experts, one of which each token goes through.

The router is that of Switch Transformer (Fedus et al. 2021, arXiv 2101.03961) without its capacity limit: no token is
dropped, so a sample's answer never depends on the samples it is batched with. Shape suffixes: B batch, T tokens
(n modalities x P patches), D hidden, N = B T tokens in a row, E experts, C outputs.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.config import Config
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion
from training.model.fusion.routing import expert_load, one_hot
from training.model.fusion.stacked import StackedLinear
from training.model.fusion.transformer import AttentionBlock, Residual, TransformerLayer, num_tokens, pool
from training.model.variants import PerturbedTokens


class SwitchMLP(nn.Module):
    """y(t) = p_e FFN_e(t), e = argmax_e p_e, p = softmax(W t + b); FFN_e is a GELU MLP of width 2 D.

    In training the router's scores get noise U(-jitter, jitter). The released code adds U(0.9, 1.1), which is the same
    as U(-0.1, 0.1): softmax does not see a constant. The noise may change which expert a token meets.

    Load-balancing loss: E sum_e f_e P_e, f_e the share of tokens that go to e, P_e the mean of p_e (eq. 4-6). It is 1
    when both are uniform and E when one expert takes everything.

    Evaluation computes all experts for all tokens and selects, so that every shape is known beforehand. Training with
    `dispatch` sorts tokens by expert and computes each once; without, it does as evaluation does (no wait for the
    counts on a GPU, usable under vmap). Both give the same numbers. Parameters: E (4 D^2 + 3 D) + E D + E.
    """

    def __init__(self, hidden_dim: int, num_experts: int, *, jitter: float, dispatch: bool) -> None:
        super().__init__()
        self.num_experts, self.jitter, self.dispatch = num_experts, jitter, dispatch
        self.router = nn.Linear(hidden_dim, num_experts)
        self.expand = StackedLinear(num_experts, hidden_dim, 2 * hidden_dim)
        self.contract = StackedLinear(num_experts, 2 * hidden_dim, hidden_dim)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) to (N, D) and the load-balancing loss ()."""
        probability_NE = torch.softmax(self._scores(x_ND), dim=-1)
        weight_N, expert_N = probability_NE.max(dim=-1)
        compute = self._dispatched if self.training and self.dispatch else self._dense
        y_ND = compute(x_ND, expert_N) * weight_N[:, None]
        loss = self.num_experts * expert_load(probability_NE, one_hot(expert_N, self.num_experts)).sum()
        return y_ND, loss

    def _scores(self, x_ND: Tensor) -> Tensor:
        scores_NE = self.router(x_ND).float()
        if not self.training:
            return scores_NE
        return scores_NE + self.jitter * (2 * torch.rand_like(scores_NE) - 1)

    def _dense(self, x_ND: Tensor, expert_N: Tensor) -> Tensor:
        y_END = self.contract(F.gelu(self.expand(x_ND[None])))
        return (y_END * one_hot(expert_N, self.num_experts).T[..., None]).sum(dim=0)

    def _dispatched(self, x_ND: Tensor, expert_N: Tensor) -> Tensor:
        order_N = expert_N.argsort(stable=True)
        parts = x_ND[order_N].split(expert_N.bincount(minlength=self.num_experts).tolist())
        y_ND = torch.cat([self.contract.one(e, F.gelu(self.expand.one(e, part))) for e, part in enumerate(parts)])
        return y_ND[order_N.argsort()]


class SwitchLayer(AttentionBlock):
    """A `TransformerLayer` whose MLP is a `SwitchMLP`. Parameters: 4 D^2 + 5 D, and the experts."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float, residual: Residual, mlp: SwitchMLP) -> None:
        super().__init__(hidden_dim, num_heads, dropout, residual)
        self.mlp = mlp

    def forward(self, x: Tensor | PerturbedTokens) -> tuple[Tensor, Tensor]:
        """(B, T, D), or perturbed tokens, to (B, T, D) and the load-balancing loss ()."""
        x_ND = self.attend(x)
        mixed_ND, loss = self.mlp(self.mlp_norm(x_ND))
        return (x_ND + self.dropout(mixed_ND)).unflatten(0, (-1, num_tokens(x))), loss


@register_fusion("switchgate")
class SwitchGateFusion(Fusion):
    """One expert: layers 0, 2, 4, ... with a `SwitchMLP`, the others dense, then mean per modality and a linear head.

    The gate loss is the sum over the sparse layers. Parameters: n P D + (n D C + C) + 8 D^2 + 8 D per dense layer +
    (4 D^2 + 5 D) + E (4 D^2 + 3 D) + E D + E per sparse layer.
    """

    jumps = True

    class Config(Config):
        """Options of the SwitchGate backbone."""

        num_experts: int = Field(default=4, ge=2)  # experts of every sparse layer
        jitter: float = Field(default=0.1, ge=0)  # half the width of the noise on router scores in training
        residual: Residual = "input"  # "released" reproduces the released code's attention block
        dispatch: bool = True  # training: each token through its own expert only; false: all experts, then select

    def __init__(self, *, config: "SwitchGateFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        num_tokens = arguments["num_modalities"] * arguments["num_patches"]
        self.position = nn.Parameter(torch.zeros(num_tokens, arguments["hidden_dim"]))
        self.layers = nn.ModuleList(self._layer(i, config, arguments) for i in range(arguments["num_layers"]))
        self.head = nn.Linear(arguments["num_modalities"] * arguments["hidden_dim"], arguments["num_outputs"])

    @staticmethod
    def _layer(position: int, config: "SwitchGateFusion.Config", arguments: FusionArguments) -> nn.Module:
        hidden_dim, num_heads, dropout = arguments["hidden_dim"], arguments["num_heads"], arguments["dropout"]
        if position % 2:
            return TransformerLayer(hidden_dim, num_heads, dropout, config.residual)
        mlp = SwitchMLP(hidden_dim, config.num_experts, jitter=config.jitter, dispatch=config.dispatch)
        return SwitchLayer(hidden_dim, num_heads, dropout, config.residual, mlp)

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C) and the gate loss ()."""
        return self._answer(tokens_BnPD.flatten(1, 2) + self.position)

    def perturbed(self, tokens: PerturbedTokens) -> FusionOutput:
        """The same of all variants (V B, C)."""
        return self._answer(tokens.placed(self.position))

    def _answer(self, x: Tensor | PerturbedTokens) -> FusionOutput:
        gate_loss = self.position.new_zeros(())
        for layer in self.layers:
            if isinstance(layer, SwitchLayer):
                x, loss = layer(x)
                gate_loss = gate_loss + loss
            else:
                x = layer(x)
        assert isinstance(x, Tensor)  # from the first layer on
        latent_BK = pool(x, self.num_modalities).flatten(1)
        return FusionOutput(self.head(latent_BK), latent_BK, gate_loss)
