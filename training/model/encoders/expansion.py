"""The columns of a tabular modality as one vector of plain numbers, for encoders that see columns and not features."""

import torch
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.model.columns import Columns, one_hot_layout, zero_nan
from training.model.encoders.arrays import Standardise
from training.model.rows import TrainingRows


class ColumnExpansion(nn.Module):
    """(B, F) with NaN to (B, `width`) without.

    Numbers, codes, texts and arrays are standardised (missing becomes 0, the mean of the training rows), categories become
    one-hot (missing: all 0), and every feature adds a flag that is 1 where it is missing. `raw` skips all that: columns
    stay as they are and NaN becomes 0, as the released code does with vectors that were prepared elsewhere.
    """

    source_K: Tensor  # for every one-hot cell, its column
    position_K: Tensor  # and the vocabulary position it stands for
    plain: Tensor  # columns that are numbers
    first: Tensor  # every feature's first column

    def __init__(self, modality: Modality, *, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        columns = Columns.of(modality)
        source_K, position_K = one_hot_layout(columns)
        self.register_buffer("source_K", source_K, persistent=False)
        self.register_buffer("position_K", position_K, persistent=False)
        self.register_buffer("plain", torch.cat([columns.numeric, *columns.dense_features]), persistent=False)
        self.register_buffer("first", columns.first, persistent=False)
        self.standardise = Standardise((columns.num_columns,))
        self.width = columns.num_columns if raw else len(self.plain) + len(source_K) + len(self.first)

    def fit(self, x_NF: TrainingRows) -> None:
        """Means and standard deviations of the columns."""
        if not self.raw:
            self.standardise.fit(x_NF)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to (B, `width`)."""
        if self.raw:
            return zero_nan(x_BF)
        one_hot_BK = (x_BF[:, self.source_K] == self.position_K).float()
        missing_BN = torch.isnan(x_BF[:, self.first]).float()
        return torch.cat([self.standardise(x_BF)[:, self.plain], one_hot_BK, missing_BN], dim=1)
