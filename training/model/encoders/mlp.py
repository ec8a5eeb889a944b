"""Columns to tokens by a multilayer perceptron."""

import itertools

from pydantic import Field
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import MAX_LAYERS
from training.config import Config as Options
from training.model.dropout import Dropout
from training.model.encoders.base import Encoder, register_encoder
from training.model.encoders.expansion import ColumnExpansion
from training.model.rows import TrainingRows


@register_encoder("mlp")
class MLPEncoder(Encoder):
    """tokens = W_k relu(... relu(W_1 expand(x))), cut into P tokens; `expand` is `ColumnExpansion`.

    The released I2MoE code's encoder of tabular modalities without patches, generalised from one token to P: `network` is
    (Linear, ReLU, Dropout) x (k - 1), Linear, at positions 0, 3, 6, ... as there. With K expanded columns, h hidden units and
    k >= 2 layers it has K h + h + (k - 2)(h^2 + h) + h P D + P D parameters; one layer is a single Linear, K P D + P D.

    Missing values: the mean of the training rows and a flag per feature; under `raw` 0 and no flag.
    """

    class Config(Options):
        """Options of the MLP encoder."""

        hidden: int = Field(default=128, ge=1)
        num_layers: int = Field(default=2, ge=1, le=MAX_LAYERS)  # Linear layers, the last one included
        dropout: float = Field(default=0.1, ge=0, lt=1)  # after every hidden layer; the released code has 0.5
        raw: bool = False  # columns as they are

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "MLPEncoder.Config") -> None:
        super().__init__()
        self.num_patches = num_patches
        self.expansion = ColumnExpansion(modality, raw=config.raw)
        widths = [self.expansion.width, *[config.hidden] * (config.num_layers - 1)]
        hidden = [(nn.Linear(a, b), nn.ReLU(), Dropout(config.dropout)) for a, b in itertools.pairwise(widths)]
        self.network = nn.Sequential(*itertools.chain.from_iterable(hidden), nn.Linear(widths[-1], num_patches * hidden_dim))

    def fit(self, x_NF: TrainingRows) -> None:
        """Means and standard deviations of the columns."""
        self.expansion.fit(x_NF)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""
        return self._tokens(self.expansion(x_BF))

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """A straight line between expanded columns, see `ColumnExpansion.expand_partly`."""
        return self._tokens(self.expansion.expand_partly(x_BF, known_BF))

    def _tokens(self, expanded_BK: Tensor) -> Tensor:
        return self.network(expanded_BK).unflatten(1, (self.num_patches, -1))
