"""The columns of a tabular modality as one vector of plain numbers, for encoders that see columns and not features."""

import torch
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.model.columns import Columns, one_hot_layout, partly, zero_nan
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
    is_flagged: Tensor  # of every feature, whether it is a number or a category: not known is then missing
    from_nothing: Tensor  # of every column, whether it belongs to codes or words: not known is then 0

    def __init__(self, modality: Modality, *, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        columns = Columns.of(modality)
        source_K, position_K = one_hot_layout(columns)
        self.register_buffer("source_K", source_K, persistent=False)
        self.register_buffer("position_K", position_K, persistent=False)
        self.register_buffer("plain", torch.cat([columns.numeric, *columns.dense_features]), persistent=False)
        self.register_buffer("first", columns.first, persistent=False)
        is_flagged = torch.isin(columns.first, torch.cat([columns.numeric, columns.categorical]))
        self.register_buffer("is_flagged", is_flagged, persistent=False)
        from_nothing = torch.zeros(columns.num_columns, dtype=torch.bool)
        for dense, is_array in zip(columns.dense_features, columns.is_array, strict=True):
            from_nothing[dense] = not is_array
        self.register_buffer("from_nothing", from_nothing, persistent=False)
        self.is_plain = bool(torch.equal(self.plain, torch.arange(columns.num_columns)))
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
        return torch.cat([self._numbers(self.standardise(x_BF)), self._one_hot(x_BF), self._flags(x_BF)], dim=1)

    def _numbers(self, x_BF: Tensor) -> Tensor:
        return x_BF if self.is_plain else x_BF.index_select(1, self.plain)

    def _one_hot(self, x_BF: Tensor) -> Tensor:
        return (x_BF.index_select(1, self.source_K) == self.position_K).float()

    def _flags(self, x_BF: Tensor) -> Tensor:
        return torch.isnan(x_BF.index_select(1, self.first)).float()

    def expand_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """(B, `width`) on the straight line from a row of which nothing is known to `x_BF`.

        A number or category that is not known is a missing one, flag included; of codes and words there is none, and
        arrays are the mean of the training rows. Under `raw` every column starts at 0.
        """
        if self.raw:
            return known_BF * zero_nan(x_BF)
        start_F = torch.where(self.from_nothing, 0, self.standardise.mean)
        numbers_BF = self.standardise(partly(x_BF, known_BF, start_F))
        one_hot_BK = known_BF[:, self.source_K] * self._one_hot(x_BF)
        flags_BN = torch.where(self.is_flagged, 1 - known_BF[:, self.first] * (1 - self._flags(x_BF)), self._flags(x_BF))
        return torch.cat([self._numbers(numbers_BF), one_hot_BK, flags_BN], dim=1)
