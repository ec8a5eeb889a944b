"""Late fusion: every modality decides on its own, and the decisions are averaged.

Decision-level fusion (Snoek, Worring and Smeulders 2005, "Early versus Late Fusion in Semantic Video Analysis"). The mean
of logits is the product rule of Kittler et al. 1998 ("On Combining Classifiers"), its n-th root taken: for one label of
many, softmax(mean_m y_m) is prod_m softmax(y_m)^(1/n), normalised. Heads are trained together, on the loss of the
averaged decision.

No modality's head sees another modality, so the logits are a sum of one term per modality and can hold no interaction
between them. That is what the name means in the literature, and not what others call by it: the LF of the released I2MoE
code is a transformer over the features of all modalities in one sequence, which meet in its first layer; MultiBench
(Liang et al. 2021) concatenates what its encoders make of each modality before one shared head, as `early` does.
Shape suffixes: B batch, n modalities, P patches, D hidden, W = P D, C outputs.
"""

from typing import Unpack

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from training.config import Config
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion
from training.model.fusion.mlp import hidden_layers


@register_fusion("late")
class LateFusion(Fusion):
    """One expert: y = 1/n sum_m y_m, y_m from (Linear, ReLU, Dropout) per hidden width and a linear head on modality m.

    No router: the gate loss is 0. `num_layers` and `num_heads` have no meaning here. As an expert of I2MoE it can only
    add what modalities say by themselves. Parameters, with widths w_0 = P D, w_1, ..., w_k:
    n (sum_i (w_{i-1} w_i + w_i) + (w_k C + C)).
    """

    class Config(Config):
        """Options of late fusion."""

        hidden: tuple[PositiveInt, ...] = (128,)  # widths of each modality's hidden layers; none: linear decisions

    def __init__(self, *, config: "LateFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        widths = (arguments["num_patches"] * arguments["hidden_dim"], *config.hidden)
        layers = [hidden_layers(widths, arguments["dropout"]) for _ in range(self.num_modalities)]
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(nn.Linear(widths[-1], arguments["num_outputs"]) for _ in range(self.num_modalities))

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C); the gate loss is 0. The latent is the modalities' own, side by side."""
        each_BW = tokens_BnPD.flatten(2).unbind(dim=1)
        latents = [layers(x_BW) for layers, x_BW in zip(self.layers, each_BW, strict=True)]
        decisions = [head(latent_BK) for head, latent_BK in zip(self.heads, latents, strict=True)]
        latent_BK = torch.cat(latents, dim=1)
        return FusionOutput(torch.stack(decisions).mean(dim=0), latent_BK, latent_BK.new_zeros(()))
