import numpy as np
import pytest
from scipy import stats

from training.validity.estimates import estimate, first, pearson, products, ratio, resampled_means, row_spearman


def test_figures_are_those_of_their_formulas() -> None:
    """A mean, a ratio of means, Pearson's correlation over rows and columns, as scipy has them."""
    x, y = np.random.default_rng(0).normal(size=(2, 40, 3)) + 100
    told = {"count": 0, "seed": 0}
    assert estimate(x[:, :1], first, **told).value == pytest.approx(x[:, 0].mean())  # type: ignore[union-attr]
    assert estimate(x[:, :2], ratio, **told).value == pytest.approx(x[:, 0].mean() / x[:, 1].mean())  # type: ignore[union-attr]
    found = estimate(products(x, x + y), pearson, **told)
    assert found is not None
    assert found.value == pytest.approx(stats.pearsonr(x.ravel(), (x + y).ravel()).statistic)
    assert found.low is None
    np.testing.assert_allclose(row_spearman(x, y), [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_intervals_hold_the_value_and_shrink_with_rows() -> None:
    """95 % of resampled means: about 4 standard errors wide."""
    values = np.random.default_rng(1).normal(size=(400, 1))
    found = estimate(values, first, count=2000, seed=0)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.1)
    assert found == estimate(values, first, count=2000, seed=0)


def test_what_is_undefined_is_none() -> None:
    """No rows, a constant side, a division by nothing; rows without ranks are NaN, without a warning."""
    constant, varied = np.full((9, 2), 0.1), np.random.default_rng(0).normal(size=(9, 2))
    assert estimate(products(constant, varied), pearson, count=5, seed=0) is None
    assert estimate(np.zeros((9, 2)), ratio, count=5, seed=0) is None
    assert estimate(np.empty((0, 1)), first, count=5, seed=0) is None
    assert np.isnan(row_spearman(constant, varied)).all()


def test_many_rows_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every resample is there once, however many fit at a time."""
    monkeypatch.setattr("training.validity.estimates._CELLS_AT_ONCE", 25)
    parts = list(resampled_means(np.arange(10.0)[:, None], 5, 0))
    assert [len(part) for part in parts] == [2, 2, 1]
