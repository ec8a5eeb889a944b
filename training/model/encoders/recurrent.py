"""Sequences to tokens by a gated recurrent unit."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.columns import partly, zero_nan
from training.model.encoders.arrays import Standardise, array_shape
from training.model.encoders.base import Encoder, register_encoder
from training.model.encoders.patch import PatchProjection
from training.model.rows import TrainingRows, changed

Padding = Literal["nan", "zero"]


def last_real_step(x_BTF: Tensor, padding: Padding) -> Tensor:
    """The number of steps up to and with the last one that is not padding: (B, 1), 0 where there is none.

    A step is padding when none of its F cells holds a value ("nan"), or a value other than 0 ("zero").
    """
    values_BTF = ~torch.isnan(x_BTF) if padding == "nan" else zero_nan(x_BTF) != 0
    real_BT = values_BTF.float().amax(dim=2)
    return (real_BT * _numbers(x_BTF)).amax(dim=1, keepdim=True)


def _numbers(x_BTF: Tensor) -> Tensor:
    """The numbers of the steps, from 1: (T,)."""
    return torch.arange(1, x_BTF.shape[1] + 1, dtype=torch.float32, device=x_BTF.device)


@register_encoder("gru")
class GRUEncoder(Encoder):
    """A GRU over the steps of a (T, F) array; its state after the last real step is cut into P patches.

    Cho et al., 2014, with torch's gates: r, z, n of `gru.weight_ih_l0` (3h, F) and `gru.weight_hh_l0` (3h, h);
    h_t = (1 - z) n + z h_{t-1}, h_0 = 0. Parameters 3h(F + h + 2) + ceil(h / P) D + D, or 3h(2F + h + 2) with flags.
    The released I2MoE code's encoder of CMU-MOSI, which takes the state after step T even where the sequence ends earlier:
    `compat = "released"` does that, and with `raw` it reads cells as they are.

    Trailing steps that are padding never count: neither for the statistics nor for the answer, so a sequence means the same
    whatever T it was padded to. A sequence of padding alone has the state h_0. Cells missing inside a sequence are the mean
    of the training rows (0 under `raw`), told apart from measured ones by `missing_flags`.
    """

    class Config(Config):
        """Options of the GRU encoder."""

        hidden: int = Field(default=256, ge=1)  # size of the state
        padding: Padding = "nan"  # what fills the steps after a sequence's end
        missing_flags: bool = False  # every cell adds an input that is 1 where it is missing
        raw: bool = False  # cells as they are
        compat: Literal["released"] | None = None

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "GRUEncoder.Config") -> None:
        super().__init__()
        self.steps, self.width = array_shape(modality, ("steps", "features"), "gru")
        self.config = config
        self.standardise = Standardise((1, self.width))
        self.gru = nn.GRU(self.width * (1 + config.missing_flags), config.hidden, batch_first=True)
        self.patches = PatchProjection(config.hidden, num_patches, hidden_dim)

    def fit(self, x_NF: TrainingRows) -> None:
        """Mean and standard deviation of every feature over the real steps of all rows."""
        if self.config.raw:
            return
        self.standardise.fit(changed(x_NF.unflatten(1, (self.steps, self.width)), self._without_padding))

    def _without_padding(self, x_NTF: Tensor) -> Tensor:
        within_NT = _numbers(x_NTF) <= last_real_step(x_NTF, self.config.padding)
        return torch.where(within_NT[:, :, None], x_NTF, torch.nan)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, T F) to tokens (B, P, D)."""
        return self._encode(x_BF, x_BF)

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """A straight line from the mean of the training rows (0 under `raw`); the sequence is as long at every share."""
        return self._encode(x_BF, partly(x_BF, known_BF, self.standardise.mean.expand(self.steps, -1).flatten()))

    def _encode(self, x_BF: Tensor, cells_BF: Tensor) -> Tensor:
        """Tokens of `cells_BF`, whose length and gaps are those of `x_BF`."""
        x_BTF, cells_BTF = (part.unflatten(1, (self.steps, self.width)) for part in (x_BF, cells_BF))
        last_B1 = last_real_step(x_BTF, self.config.padding)
        states_BTh, _ = self.gru(self._inputs(x_BTF, cells_BTF, last_B1))
        return self.patches(self._final_state(states_BTh, last_B1))

    def _inputs(self, x_BTF: Tensor, cells_BTF: Tensor, last_B1: Tensor) -> Tensor:
        """What the GRU reads: standardised cells and flags, 0 in the padding."""
        cells = self.standardise(cells_BTF)
        if self.config.missing_flags:
            cells = torch.cat([cells, torch.isnan(x_BTF).float()], dim=2)
        within_BT = _numbers(x_BTF) <= last_B1
        return torch.where(within_BT[:, :, None], cells, torch.zeros_like(cells))

    def _final_state(self, states_BTh: Tensor, last_B1: Tensor) -> Tensor:
        if self.config.compat == "released":
            return states_BTh[:, -1]
        is_last_BT = (_numbers(states_BTh) == last_B1).float()  # a product, so that the graph has no gather over steps
        return (is_last_BT[:, None] @ states_BTh).squeeze(1)
