"""Vectors to tokens by the Maxout network of MM-IMDB."""

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.dropout import Dropout
from training.model.encoders.base import Encoder, register_encoder
from training.model.encoders.batch_norm import VectorBatchNorm, encode_present
from training.model.encoders.expansion import ColumnExpansion
from training.model.encoders.patch import PatchProjection
from training.model.rows import TrainingRows

_FIRST_EPS = 1e-4  # of the first batch normalisation, in the GMU code and all that followed it


class Maxout(nn.Module):
    """y_j = max over k of (W x + b)_{j k}: one Linear to m x k units, each group of k neighbours answers its largest.

    Goodfellow et al., "Maxout networks", ICML 2013. Parameters F m k + m k.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_pieces: int) -> None:
        super().__init__()
        self.num_pieces = num_pieces
        self.lin = nn.Linear(num_inputs, num_outputs * num_pieces)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to (B, m)."""
        return self.lin(x_BF).unflatten(1, (-1, self.num_pieces)).amax(dim=-1)


@register_encoder("maxout")
class MaxoutEncoder(Encoder):
    """BN, Maxout, BN, Dropout, Maxout, BN, Dropout, then the second Maxout's units cut into P patches.

    The released I2MoE code's encoder of MM-IMDB, after Arevalo et al., "Gated multimodal units", 2017, by its parameter names
    (op0, op1.lin, op2.0, op3.lin, op4.0; patches.projection for 1.projection). With K columns, m and n units of 2 pieces it
    has 2K + 2m(K + 1) + 2m + 2n(m + 1) + 2n + ceil(n / P) D + D parameters. Released sizes: texts 300 -> 512 -> 512,
    images 4096 -> 1024 -> 512.

    Missing values: as in `ColumnExpansion`. Rows without a value, and batches of one row, do not touch the running
    statistics of the batch normalisation.
    """

    class Config(Config):
        """Options of the Maxout encoder."""

        hidden: tuple[PositiveInt, PositiveInt] = (512, 512)  # units of the two Maxout layers
        num_pieces: int = Field(default=2, ge=1)  # linear pieces of every unit
        dropout: float = Field(default=0.3, ge=0, lt=1)
        raw: bool = False  # columns as they are; the first batch normalisation scales them anyway

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "MaxoutEncoder.Config") -> None:
        super().__init__()
        first, second = config.hidden
        self.expansion = ColumnExpansion(modality, raw=config.raw)
        self.op0 = VectorBatchNorm(self.expansion.width, eps=_FIRST_EPS)
        self.op1 = Maxout(self.expansion.width, first, config.num_pieces)
        self.op2 = nn.Sequential(VectorBatchNorm(first), Dropout(config.dropout))
        self.op3 = Maxout(first, second, config.num_pieces)
        self.op4 = nn.Sequential(VectorBatchNorm(second), Dropout(config.dropout))
        self.patches = PatchProjection(second, num_patches, hidden_dim)

    def fit(self, x_NF: TrainingRows) -> None:
        """Means and standard deviations of the columns."""
        self.expansion.fit(x_NF)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""
        return encode_present(self._encode, x_BF) if self.training else self._encode(x_BF)

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """A straight line between expanded columns, see `ColumnExpansion.expand_partly`."""
        return self._tokens(self.expansion.expand_partly(x_BF, known_BF))

    def _encode(self, x_BF: Tensor) -> Tensor:
        return self._tokens(self.expansion(x_BF))

    def _tokens(self, expanded_BK: Tensor) -> Tensor:
        first_Bm = self.op2(self.op1(self.op0(expanded_BK)))
        return self.patches(self.op4(self.op3(first_Bm)))
