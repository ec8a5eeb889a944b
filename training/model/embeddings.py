"""Embeddings of single features: numbers and categories to vectors.

Shape suffixes: B batch, F features, T bins, Q frequencies, W embedding width.
"""

import math

import torch
from torch import Tensor, nn

from training.model.columns import partly, zero_nan
from training.model.dropout import Dropout
from training.model.rows import TrainingRows, column_parts

_TWO_PI = 2 * math.pi
_SCORE_LIMIT = 1e-3  # normal scores stay within the quantiles 0.001 and 0.999


def _mid_ranks(values_N: Tensor, at_T: Tensor) -> Tensor:
    """For each of `at_T` the share of `values_N` below it, counting ties half."""
    ordered = values_N.sort().values
    below = torch.searchsorted(ordered, at_T)
    not_above = torch.searchsorted(ordered, at_T, right=True)
    return (below + not_above).double() / (2 * len(ordered))


class NumericEmbedding(nn.Module):
    """Numbers to vectors, each feature with weights of its own.

    A number x lies among quantile knots k_0 <= ... <= k_T of the training rows. Its piecewise-linear code is
    s_t = clip((x - k_t) / (k_{t+1} - k_t), 0, 1); its normal score z is the standard normal quantile of its rank,
    interpolated over the same knots, so skewed laboratory values spread evenly and outliers stay bounded. Then

        embedding = bias + score_weight z + sum_t piece_weight_t s_t + sum_q [sin, cos](2 pi frequency_q z) wave_weight_q

    (piecewise-linear and periodic embeddings of Gorishniy, Rubachev and Babenko, "On embeddings for numerical features in
    tabular deep learning", NeurIPS 2022, formulas 1 and 3). In training N(0, noise^2) is added to every embedding. A missing
    number is a learned vector of its own.
    """

    knots: Tensor  # (F, T + 1)
    inverse_width: Tensor  # (F, T), 0 for bins that hold nothing
    first_score: Tensor  # (F,)
    score_step: Tensor  # (F, T)

    def __init__(
        self, num_features: int, width: int, *, num_bins: int, num_frequencies: int, frequency_scale: float, noise: float
    ) -> None:
        super().__init__()
        self.num_bins, self.noise = num_bins, noise
        self.register_buffer("knots", torch.zeros(num_features, num_bins + 1))
        self.register_buffer("inverse_width", torch.zeros(num_features, num_bins))
        self.register_buffer("first_score", torch.zeros(num_features))
        self.register_buffer("score_step", torch.zeros(num_features, num_bins))
        self.bias = nn.Parameter(0.1 * torch.randn(num_features, width))
        self.missing = nn.Parameter(0.1 * torch.randn(num_features, width))
        self.score_weight = nn.Parameter(0.25 * torch.randn(num_features, width))
        self.piece_weight = nn.Parameter(0.5 * torch.randn(num_features, num_bins, width) / math.sqrt(num_bins))
        self.frequency = nn.Parameter(frequency_scale * torch.randn(num_features, num_frequencies))
        self.wave_weight = nn.Parameter(
            0.5 * torch.randn(num_features, 2 * num_frequencies, width) / math.sqrt(max(1, 2 * num_frequencies))
        )

    def fit(self, x_NF: Tensor) -> None:
        """Knots and normal scores of every feature from the training rows (N, F), NaN where missing."""
        for feature in range(x_NF.shape[1]):
            values = x_NF[:, feature]
            self._fit_one(feature, values[~torch.isnan(values)].double())

    def _fit_one(self, feature: int, values_N: Tensor) -> None:
        levels = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.double)
        knots = torch.quantile(values_N, levels).unique() if len(values_N) else torch.zeros(1, dtype=torch.double)
        ranks = _mid_ranks(values_N, knots).clamp(_SCORE_LIMIT, 1 - _SCORE_LIMIT) if len(values_N) else torch.full((1,), 0.5)
        scores = torch.special.ndtri(ranks)
        used = len(knots) - 1
        self.knots[feature] = knots[-1]  # unused bins sit at the end with no width
        self.knots[feature, : used + 1] = knots
        self.inverse_width[feature] = 0
        self.inverse_width[feature, :used] = (1 / knots.diff()).clamp(
            max=torch.finfo(torch.float32).max
        )  # 1 / denormal is infinite
        self.first_score[feature] = scores[0]
        self.score_step[feature] = 0
        self.score_step[feature, :used] = scores.diff()

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to (B, F, W)."""
        pieces_BFT = ((zero_nan(x_BF)[:, :, None] - self.knots[:, :-1]) * self.inverse_width).clamp(0, 1)
        score_BF1 = (self.first_score + (pieces_BFT * self.score_step).sum(dim=-1))[:, :, None]
        angle_BFQ = _TWO_PI * score_BF1 * self.frequency
        waves = torch.cat([angle_BFQ.sin(), angle_BFQ.cos()], dim=-1)
        code = torch.cat([pieces_BFT, waves], dim=-1)
        weight = torch.cat([self.piece_weight, self.wave_weight], dim=1)
        embedded_BFW = torch.einsum("bfk,fkw->bfw", code, weight) + score_BF1 * self.score_weight + self.bias
        if self.training and self.noise > 0:
            embedded_BFW = embedded_BFW + self.noise * torch.randn_like(embedded_BFW)
        return torch.where(torch.isnan(x_BF)[:, :, None], self.missing, embedded_BFW)

    def embed_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """(B, F, W) on the straight line from the vectors of missing numbers to those of `x_BF`."""
        return self.missing + known_BF[:, :, None] * (self(x_BF) - self.missing)


class CategoryEmbedding(nn.Module):
    """Categories to vectors: a table per feature, and a learned vector for missing."""

    def __init__(self, vocabulary_sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.vocabulary_sizes = vocabulary_sizes
        self.tables = nn.ParameterList(0.25 * torch.randn(size, width) for size in vocabulary_sizes)
        self.missing = nn.Parameter(0.25 * torch.randn(len(vocabulary_sizes), width))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Vocabulary positions (B, F), NaN where missing, to (B, F, W)."""
        rows_BF = zero_nan(x_BF).long()
        embedded_BFW = torch.stack([table[rows_BF[:, f]] for f, table in enumerate(self.tables)], dim=1)
        return torch.where(torch.isnan(x_BF)[:, :, None], self.missing, embedded_BFW)

    def embed_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """(B, F, W) on the straight line from the vectors of missing categories to those of `x_BF`."""
        return self.missing + known_BF[:, :, None] * (self(x_BF) - self.missing)


class DenseEmbedding(nn.Module):
    """One feature of many columns (codes, text, an array) to one vector: Linear of its standardised columns.

    Columns are centred and divided by one common scale, so a rare code does not become a huge number.
    """

    columns: Tensor  # (K,), positions among the modality's columns
    mean: Tensor  # (K,)
    scale: Tensor  # ()

    def __init__(self, columns: Tensor, width: int, *, is_array: bool) -> None:
        super().__init__()
        self.is_array = is_array  # codes and texts have a natural zero, arrays have not
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("mean", torch.zeros(len(columns)))
        self.register_buffer("scale", torch.ones(()))
        self.linear = nn.Linear(len(columns), width)
        self.missing = nn.Parameter(0.1 * torch.randn(width))

    def fit(self, x_NF: TrainingRows) -> None:
        """Means per column and one standard deviation over all of them, from the training rows (N, F); goes through them twice.

        In double precision: in float32 the mean of equal numbers is not always that number.
        """
        count, total = torch.zeros(2, len(self.columns), dtype=torch.double)
        for part in column_parts(x_NF, self.columns):
            count += (~torch.isnan(part)).sum(dim=0)
            total += part.nansum(dim=0)
        mean = total / count
        squares = sum((part - mean).square().nansum() for part in column_parts(x_NF, self.columns))
        scale = torch.as_tensor(squares / count.sum()).sqrt()
        self.mean.copy_(zero_nan(mean))
        self.scale.copy_(scale if scale > 0 else torch.ones(()))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to (B, W); missing when all of the feature's columns are NaN."""
        return self._embed(x_BF.index_select(1, self.columns))

    def embed_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """(B, W) on the straight line from no code, no word or the average array to the columns of `x_BF`."""
        start_K = self.mean if self.is_array else torch.zeros_like(self.mean)
        return self._embed(partly(x_BF[:, self.columns], known_BF[:, self.columns], start_K))

    def _embed(self, values_BK: Tensor) -> Tensor:
        embedded_BW = self.linear(zero_nan((values_BK - self.mean) / self.scale))
        return torch.where(torch.isnan(values_BK).all(dim=1, keepdim=True), self.missing, embedded_BW)


class TokenMLP(nn.Module):
    """t + MLP(LN(t)) on every token."""

    def __init__(self, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.expand = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.contract = nn.Linear(2 * hidden_dim, hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens_BPD: Tensor) -> Tensor:
        """(B, P, D) to (B, P, D)."""
        hidden = nn.functional.gelu(self.expand(self.norm(tokens_BPD)))
        return tokens_BPD + self.dropout(self.contract(hidden))
