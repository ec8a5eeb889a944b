"""InterpretCC: every modality has a gate that opens or stays closed for a sample, and what is open is fused.

Swamy et al. 2024 (arXiv 2402.02933), in the form of the released I2MoE code, on the mean over a modality's patches.
Shape suffixes: B batch, n modalities, P patches, D hidden, C outputs.
"""

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.config import Config
from training.model.dropout import Dropout
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion

GUMBEL_MEDIAN = -math.log(math.log(2))


def sample_gumbel(like: Tensor) -> Tensor:
    """Independent draws of the Gumbel(0, 1) distribution, P(G <= a) = exp(-exp(-a))."""
    return -torch.empty_like(like).exponential_().log()


class GumbelGate(nn.Module):
    """g = sigmoid((s + G) / tau), G ~ Gumbel(0, 1) in training; if `hard`, 1[g > threshold] with the gradient of g.

    Evaluation puts the median of G, -ln ln 2, in place of the draw: same answer to the same question. With a hard gate
    that is the majority vote of the training-time gate. It opens iff G > tau logit(threshold) - s, so

        P(open) = 1 - exp(-exp(s - tau logit(threshold))),

    which is above 1/2 iff s > tau logit(threshold) + ln ln 2, that is iff the gate opens at the median of G. With a soft
    gate it is the median of g, as sigmoid is increasing.
    """

    def __init__(self, *, tau: float, threshold: float, hard: bool) -> None:
        super().__init__()
        self.tau, self.hard = tau, hard
        self.threshold_logit = math.log(threshold / (1 - threshold))

    def forward(self, score: Tensor) -> Tensor:
        """Scores of any shape to gates in [0, 1] of that shape."""
        noise = sample_gumbel(score) if self.training else GUMBEL_MEDIAN
        logit = (score + noise) / self.tau
        if not self.hard:
            return torch.sigmoid(logit)
        is_open = (logit > self.threshold_logit).to(logit.dtype)
        if not self.training:
            return is_open
        soft = torch.sigmoid(logit)
        return is_open + (soft - soft.detach())


@register_fusion("interpretcc")
class InterpretCCFusion(Fusion):
    """One expert: z = concat_m g_m mean_P(x_m), then Linear, ReLU, Dropout, Linear, ReLU, Linear.

    Gate m has the score s_m = MLP_m(mean_P(x_m)) of its own modality. There is no loss on the gates: the gate loss is 0
    and they learn from the task. `num_layers` and `num_heads` have no meaning here. Parameters: n (D^2 + 2 D + 1) +
    (n D^2 + D) + (D h + h) + (h C + C) with h = D // 2.
    """

    jumps = True

    class Config(Config):
        """Options of the InterpretCC backbone."""

        tau: float = Field(default=1.0, gt=0)  # temperature of the gates
        threshold: float = Field(default=0.5, gt=0, lt=1)  # a hard gate is open above it
        hard: bool = True  # gates are 0 or 1; false: anything between

    def __init__(self, *, config: "InterpretCCFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        num_modalities, hidden_dim = arguments["num_modalities"], arguments["hidden_dim"]
        self.gate = GumbelGate(**config.model_dump())
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1)) for _ in range(num_modalities)
        )
        self.fuse = nn.Linear(num_modalities * hidden_dim, hidden_dim)
        self.dropout = Dropout(arguments["dropout"])
        self.expand = nn.Linear(hidden_dim, hidden_dim // 2)
        self.head = nn.Linear(hidden_dim // 2, arguments["num_outputs"])

    def gates(self, pooled_BnD: Tensor) -> Tensor:
        """Modality vectors (B, n, D) to gates (B, n)."""
        scores = [score(x_BD) for score, x_BD in zip(self.scores, pooled_BnD.unbind(dim=1), strict=True)]
        return self.gate(torch.cat(scores, dim=1))

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C); the gate loss is 0."""
        pooled_BnD = tokens_BnPD.mean(dim=2)
        gated_BnD = pooled_BnD * self.gates(pooled_BnD)[..., None]
        fused_BD = self.dropout(F.relu(self.fuse(gated_BnD.flatten(1))))
        latent_BK = F.relu(self.expand(fused_BD))
        return FusionOutput(self.head(latent_BK), latent_BK, latent_BK.new_zeros(()))
