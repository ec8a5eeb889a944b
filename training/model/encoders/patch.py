"""The paper's encoder: a vector cut into patches."""

import math

from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.encoders.base import Encoder, register_encoder
from training.model.encoders.expansion import ColumnExpansion
from training.model.rows import TrainingRows


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

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "PatchEncoder.Config") -> None:
        super().__init__()
        self.expansion = ColumnExpansion(modality, raw=config.raw)
        self.patches = PatchProjection(self.expansion.width, num_patches, hidden_dim)

    def fit(self, x_NF: TrainingRows) -> None:
        """Means and standard deviations of the columns; a constant column keeps scale 1."""
        self.expansion.fit(x_NF)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""
        return self.patches(self.expansion(x_BF))

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """A straight line between expanded columns, see `ColumnExpansion.expand_partly`."""
        return self.patches(self.expansion.expand_partly(x_BF, known_BF))
