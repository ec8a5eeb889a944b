"""The paper's encoder: a vector cut into patches."""

import math

import torch
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.columns import Columns, one_hot_layout, zero_nan
from training.model.encoders.base import Encoder, register_encoder


class PatchProjection(nn.Module):
    """Split a vector into P patches of ceil(F / P), zero-padded on the right, one shared Linear for all of them.

    The patch embedding of the released I2MoE code: parameters ceil(F / P) D + D.
    """

    def __init__(self, num_columns: int, num_patches: int, hidden_dim: int) -> None:
        super().__init__()
        patch_size = math.ceil(num_columns / num_patches)
        self.num_patches, self.padding = num_patches, patch_size * num_patches - num_columns
        self.projection = nn.Linear(patch_size, hidden_dim)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to (B, P, D)."""
        padded = nn.functional.pad(x_BF, (0, self.padding))
        return self.projection(padded.unflatten(1, (self.num_patches, -1)))


@register_encoder("patch")
class PatchEncoder(Encoder):
    """The paper's encoder: columns as they are, cut into patches.

    By default numbers are standardised, categories become one-hot and every feature gets a missing indicator first;
    `raw` skips all that (NaN becomes 0), as the released code does with vectors that were prepared elsewhere.
    """

    class Config(Config):
        """Options of the patch encoder."""

        raw: bool = False

    mean_F: Tensor
    scale_F: Tensor
    source_K: Tensor  # for every one-hot cell, its column
    position_K: Tensor  # and the vocabulary position it stands for
    plain: Tensor  # columns that are numbers
    first: Tensor  # every feature's first column

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "PatchEncoder.Config") -> None:
        super().__init__()
        self.raw = config.raw
        columns = Columns.of(modality)
        source_K, position_K = one_hot_layout(columns)
        self.register_buffer("source_K", source_K, persistent=False)
        self.register_buffer("position_K", position_K, persistent=False)
        self.register_buffer("plain", torch.cat([columns.numeric, *columns.dense_features]), persistent=False)
        self.register_buffer("first", columns.first, persistent=False)
        self.register_buffer("mean_F", torch.zeros(columns.num_columns))
        self.register_buffer("scale_F", torch.ones(columns.num_columns))
        expanded = len(self.plain) + len(source_K) + len(self.first)
        self.patches = PatchProjection(columns.num_columns if self.raw else expanded, num_patches, hidden_dim)

    def fit(self, x_NF: Tensor) -> None:
        """Means and standard deviations of the columns; a constant column keeps scale 1."""
        x_NF = x_NF.double()  # in float32 the mean of equal numbers is not always that number
        mean_F = x_NF.nanmean(dim=0)
        scale_F = (x_NF - mean_F).square().nanmean(dim=0).sqrt()
        self.mean_F.copy_(zero_nan(mean_F))
        self.scale_F.copy_(torch.where(scale_F > 0, scale_F, torch.ones_like(scale_F)))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""
        return self.patches(zero_nan(x_BF) if self.raw else self._expand(x_BF))

    def _expand(self, x_BF: Tensor) -> Tensor:
        standard_BF = zero_nan((x_BF - self.mean_F) / self.scale_F)
        one_hot_BK = (x_BF[:, self.source_K] == self.position_K).float()
        missing_BN = torch.isnan(x_BF[:, self.first]).float()
        return torch.cat([standard_BF[:, self.plain], one_hot_BK, missing_BN], dim=1)
