"""Tabular features to tokens: every feature has an embedding of its own."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.columns import Columns
from training.model.dropout import Dropout
from training.model.embeddings import CategoryEmbedding, DenseEmbedding, NumericEmbedding, TokenMLP
from training.model.encoders.base import Encoder, register_encoder
from training.model.rows import TrainingRows, some_columns


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
        self.dense = nn.ModuleList(
            DenseEmbedding(dense, width, is_array=is_array)
            for dense, is_array in zip(columns.dense_features, columns.is_array, strict=True)
        )
        num_features = len(modality.features)
        self.dropout = Dropout(config.dropout)
        self.mix = nn.Linear(num_features * width, num_patches * hidden_dim)
        self.num_patches = num_patches
        self.token_position = nn.Parameter(0.02 * torch.randn(num_patches, hidden_dim))
        self.token_mlp = TokenMLP(hidden_dim, config.dropout) if config.token_mlp else nn.Identity()

    def fit(self, x_NF: TrainingRows) -> None:
        """Quantile knots of the numbers, standardisation of the dense columns."""
        if len(self.numeric_columns):
            self.numeric.fit(some_columns(x_NF, self.numeric_columns))
        for dense in self._dense_embeddings():
            dense.fit(x_NF)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""
        parts = [dense(x_BF)[:, None] for dense in self.dense]
        if len(self.categorical_columns):
            parts.insert(0, self.categorical(x_BF.index_select(1, self.categorical_columns)))
        if len(self.numeric_columns):
            parts.insert(0, self.numeric(x_BF.index_select(1, self.numeric_columns)))
        return self._mix(parts)

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """Straight lines between embeddings: from "missing" for numbers and categories, from nothing for codes and words."""
        numbers, categories = self.numeric_columns, self.categorical_columns
        parts = [dense.embed_partly(x_BF, known_BF)[:, None] for dense in self._dense_embeddings()]
        if len(categories):
            parts.insert(0, self.categorical.embed_partly(x_BF[:, categories], known_BF[:, categories]))
        if len(numbers):
            parts.insert(0, self.numeric.embed_partly(x_BF[:, numbers], known_BF[:, numbers]))
        return self._mix(parts)

    def _dense_embeddings(self) -> Iterator[DenseEmbedding]:
        for dense in self.dense:
            assert isinstance(dense, DenseEmbedding)
            yield dense

    def _mix(self, parts: list[Tensor]) -> Tensor:
        """Embeddings (B, features, W) to tokens (B, P, D)."""
        features = self.dropout(torch.cat(parts, dim=1).flatten(1))
        tokens_BPD = self.mix(features).unflatten(1, (self.num_patches, -1)) + self.token_position
        return self.token_mlp(tokens_BPD)
