"""Early fusion: the features of all modalities side by side, and one network that sees them all.

Feature-level fusion (Snoek, Worring and Smeulders 2005, "Early versus Late Fusion in Semantic Video Analysis"). The EF of
the released I2MoE code is another network behind the same concatenation: per patch, a linear map to 9 channels and a
transformer over patches whose last token alone reaches the head. Shape suffixes: B batch, n modalities, P patches,
D hidden, C outputs.
"""

from typing import Unpack

from pydantic import PositiveInt
from torch import Tensor, nn

from training.config import Config
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion
from training.model.fusion.mlp import hidden_layers


@register_fusion("early")
class EarlyFusion(Fusion):
    """One expert: the n P D numbers of all tokens through (Linear, ReLU, Dropout) per hidden width, then a linear head.

    No router: the gate loss is 0. `num_layers` and `num_heads` have no meaning here. Parameters, with widths
    w_0 = n P D, w_1, ..., w_k: sum_i (w_{i-1} w_i + w_i) + (w_k C + C).
    """

    class Config(Config):
        """Options of early fusion."""

        hidden: tuple[PositiveInt, ...] = (128,)  # widths of the hidden layers; none: a linear model

    def __init__(self, *, config: "EarlyFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        in_dim = arguments["num_modalities"] * arguments["num_patches"] * arguments["hidden_dim"]
        widths = (in_dim, *config.hidden)
        self.layers = hidden_layers(widths, arguments["dropout"])
        self.head = nn.Linear(widths[-1], arguments["num_outputs"])

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C); the gate loss is 0."""
        latent_BK = self.layers(tokens_BnPD.flatten(1))
        return FusionOutput(self.head(latent_BK), latent_BK, latent_BK.new_zeros(()))
