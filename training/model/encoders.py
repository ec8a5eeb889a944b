"""Encoders: one modality's columns to tokens, registered by name.

Every encoder reads (B, F) float32 with NaN where a value is missing and answers (B, P, D) tokens that are always
finite. Whatever it needs to know of the data (means, bin edges) it learns once in `fit` from training rows and keeps in
buffers, so it is part of the checkpoint and of the graph. Shape suffixes: B batch, F columns, P patches, D hidden.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.columns import Columns, one_hot_layout, zero_nan
from training.model.embeddings import CategoryEmbedding, DenseEmbedding, NumericEmbedding, TokenMLP


class Encoder(nn.Module, ABC):
    """Base of all encoders. Subclasses name their configuration class in `Config`."""

    Config: ClassVar[type[Config]]

    def fit(self, x_NF: Tensor) -> None:
        """Learn statistics from the training rows (N, F). Called once, before training."""

    @abstractmethod
    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""


EncoderClass = Callable[..., Encoder]
ENCODERS: dict[str, type[Encoder]] = {}


def register_encoder(name: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Class decorator: makes an encoder available to recipes under `name`."""

    def register(encoder: type[Encoder]) -> type[Encoder]:
        if name in ENCODERS:
            raise ValueError(f"an encoder named {name!r} is registered already: {ENCODERS[name].__qualname__}")
        ENCODERS[name] = encoder
        return encoder

    return register


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


@register_encoder("feature")
class FeatureEncoder(Encoder):
    """Every feature gets an embedding of its own, then one Linear mixes all of them into P tokens.

    Numbers and categories: see `training.model.embeddings`. Codes, texts and arrays: one Linear each, over all their
    columns, or a learned vector where missing. Tokens then pass a residual MLP, t + MLP(LN(t)), if `token_mlp`.
    """

    class Config(Config):
        """Options of the feature encoder."""

        embedding_dim: int = Field(default=16, ge=1)  # width of one feature's embedding
        num_bins: int = Field(default=32, ge=2)  # quantile bins of a number
        num_frequencies: int = Field(default=8, ge=0)  # waves per number
        frequency_scale: float = Field(default=0.1, gt=0)  # their standard deviation at the start, in cycles per z
        noise: float = Field(default=0.1, ge=0)  # standard deviation added to the embeddings of numbers in training
        dropout: float = Field(default=0.1, ge=0, lt=1)
        token_mlp: bool = False

    numeric_columns: Tensor
    categorical_columns: Tensor

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "FeatureEncoder.Config") -> None:
        super().__init__()
        columns = Columns.of(modality)
        width = config.embedding_dim
        self.register_buffer("numeric_columns", columns.numeric, persistent=False)
        self.register_buffer("categorical_columns", columns.categorical, persistent=False)
        self.numeric = NumericEmbedding(
            len(columns.numeric),
            width,
            num_bins=config.num_bins,
            num_frequencies=config.num_frequencies,
            frequency_scale=config.frequency_scale,
            noise=config.noise,
        )
        self.categorical = CategoryEmbedding(columns.vocabulary_sizes, width)
        self.dense = nn.ModuleList(DenseEmbedding(columns, width) for columns in columns.dense_features)
        num_features = len(modality.features)
        self.dropout = nn.Dropout(config.dropout)
        self.mix = nn.Linear(num_features * width, num_patches * hidden_dim)
        self.num_patches = num_patches
        self.token_position = nn.Parameter(0.02 * torch.randn(num_patches, hidden_dim))
        self.token_mlp = TokenMLP(hidden_dim, config.dropout) if config.token_mlp else nn.Identity()

    def fit(self, x_NF: Tensor) -> None:
        """Quantile knots of the numbers, standardisation of the dense columns."""
        self.numeric.fit(x_NF[:, self.numeric_columns])
        for dense in self.dense:
            assert isinstance(dense, DenseEmbedding)
            dense.fit(x_NF)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""
        parts = [dense(x_BF)[:, None] for dense in self.dense]
        if len(self.categorical_columns):
            parts.insert(0, self.categorical(x_BF[:, self.categorical_columns]))
        if len(self.numeric_columns):
            parts.insert(0, self.numeric(x_BF[:, self.numeric_columns]))
        features = self.dropout(torch.cat(parts, dim=1).flatten(1))
        tokens_BPD = self.mix(features).unflatten(1, (self.num_patches, -1)) + self.token_position
        return self.token_mlp(tokens_BPD)
