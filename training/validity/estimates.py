"""Figures over rows with bootstrap intervals. Every figure here is a function of means over rows.

Shape suffixes: N rows, R resamples, K columns.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from service.bundle.validity import Estimate

Floats = NDArray[np.floating]
_CELLS_AT_ONCE = 1 << 22  # of row counts
_CONSTANT = 1e-12  # a variance below this part of the mean square is rounding


def resampled_means(columns_NK: Floats, count: int, seed: int) -> Iterator[Floats]:
    """Means (r, K) of `count` bootstrap resamples of the rows, some at a time."""
    num_rows = len(columns_NK)
    generator = np.random.default_rng(seed)
    equal = np.full(num_rows, 1 / num_rows)
    size = max(1, _CELLS_AT_ONCE // num_rows)
    for start in range(0, count, size):
        yield generator.multinomial(num_rows, equal, size=min(size, count - start)) @ columns_NK / num_rows


def estimate(columns_NK: Floats, function: Callable[[Floats], Floats], *, count: int, seed: int) -> Estimate | None:
    """`function` of the columns' means (..., K) -> (...), with its percentile interval; None where it is undefined."""
    if len(columns_NK) == 0 or not np.isfinite(value := float(function(columns_NK.mean(axis=0)))):
        return None
    drawn = [function(means_RK) for means_RK in resampled_means(columns_NK, count, seed)]
    kept = np.concatenate(drawn) if drawn else np.empty(0)
    kept = kept[np.isfinite(kept)]
    if len(kept) == 0:
        return Estimate(value=value)
    low, high = np.quantile(kept, [0.025, 0.975]).tolist()
    return Estimate(value=value, low=low, high=high)


def first(means_K: Floats) -> Floats:
    """The mean of the first column: the simplest figure."""
    mean: Floats = means_K[..., 0]
    return mean


def ratio(means_K: Floats) -> Floats:
    """The first column's mean over the second's."""
    return _divide(means_K[..., 0], means_K[..., 1])


def products(x_NM: Floats, y_NM: Floats) -> Floats:
    """Columns (N, 5) whose means `pearson` takes: x, y, x^2, y^2, x y, each the mean over a row's M values."""
    x_NM, y_NM = x_NM - x_NM.mean(), y_NM - y_NM.mean()  # a correlation knows no offset; rounding does
    return np.stack([a.mean(axis=1) for a in (x_NM, y_NM, x_NM**2, y_NM**2, x_NM * y_NM)], axis=1)


def pearson(means_K: Floats) -> Floats:
    """The correlation coefficient from the means of `products`; NaN where one side is constant."""
    x, y, xx, yy, xy = np.moveaxis(means_K, -1, 0)
    variances = (xx - x**2).clip(0) * (yy - y**2).clip(0)
    return _divide(xy - x * y, np.sqrt(np.where(variances > _CONSTANT * xx * yy, variances, 0)))


def ranks(values: Floats, axis: int = -1) -> Floats:
    """Ranks along an axis, equal values sharing their mean rank."""
    ranked: Floats = rankdata(values, axis=axis)
    return ranked


def row_spearman(x_NM: Floats, y_NM: Floats) -> Floats:
    """The rank correlation over each row's M values (N,); NaN where one side is constant."""
    x_NM, y_NM = ranks(x_NM), ranks(y_NM)
    x_NM, y_NM = x_NM - x_NM.mean(axis=1, keepdims=True), y_NM - y_NM.mean(axis=1, keepdims=True)
    return _divide((x_NM * y_NM).sum(axis=1), np.sqrt((x_NM**2).sum(axis=1) * (y_NM**2).sum(axis=1)))


def _divide(above: Floats, below: Floats) -> Floats:
    """Where the divisor is 0, NaN and no warning."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) != 0)
