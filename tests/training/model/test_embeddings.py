import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.model.embeddings import CategoryEmbedding, DenseEmbedding, NumericEmbedding


def fitted(values: Tensor, *, num_bins: int = 8, noise: float = 0.0, frequencies: int = 2) -> NumericEmbedding:
    torch.manual_seed(0)
    embedding = NumericEmbedding(
        1, 3, num_bins=num_bins, num_frequencies=frequencies, frequency_scale=0.1, noise=noise
    )  # fmt: skip
    embedding.fit(values[:, None])
    return embedding.eval()


def scores(embedding: NumericEmbedding, x: Tensor) -> Tensor:
    """The normal scores of numbers, read off an embedding that shows nothing else."""
    with torch.no_grad():
        for p in embedding.parameters():
            p.zero_()
        embedding.score_weight.fill_(1.0)
    return embedding(x[:, None])[:, 0, 0].detach()


LOGNORMAL = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1, 1001)).float()


def test_the_score_of_the_training_median_is_zero() -> None:
    """The normal score maps the median to 0 and the quartiles to -0.674 and 0.674, however skewed the values are."""
    found = scores(fitted(LOGNORMAL), torch.quantile(LOGNORMAL, torch.tensor([0.25, 0.5, 0.75])))
    torch.testing.assert_close(found, torch.tensor([-0.6745, 0.0, 0.6745]), atol=0.01, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    asked=st.lists(st.floats(-1e9, 1e9, width=32), min_size=2, max_size=20),
)
def test_the_score_rises_with_the_value_and_is_bounded(values: list[float], asked: list[float]) -> None:
    """Monotone in x, finite, and never beyond the scores of the quantiles 0.001 and 0.999."""
    found = scores(fitted(torch.tensor(values)), torch.tensor(sorted(asked)))
    assert torch.isfinite(found).all()
    assert (found.diff() >= -1e-5).all()
    assert (found.abs() <= 3.0903).all()


def test_outside_the_range_nothing_changes_any_more() -> None:
    """Beyond the smallest and largest training value the embedding is that of the edge."""
    embedding = fitted(LOGNORMAL)
    low, high = LOGNORMAL.min(), LOGNORMAL.max()
    edge = embedding(torch.stack([low, high])[:, None])
    beyond = embedding(torch.tensor([[-1e30], [1e30]]))
    torch.testing.assert_close(edge, beyond)
    assert not torch.equal(edge[0], edge[1])


def test_a_constant_column_tells_nothing() -> None:
    """Every number, whatever it is, has the embedding of the one value seen, with score 0."""
    constant = torch.full((1000,), 0.1)
    embedding = fitted(constant)
    found = embedding(torch.tensor([[0.1], [0.0], [5e5]]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert (scores(embedding, constant) == 0).all()


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0] * 99 + [1.0], [1.0, 2.0, 2.0, 5.0]])
def test_few_distinct_values_keep_their_places(values: list[float]) -> None:
    """With fewer values than bins each value keeps its mid-rank score, and all of them differ."""
    column = torch.tensor(values)
    distinct = column.unique()
    found = scores(fitted(column, num_bins=32), distinct)
    ranks = torch.tensor([((column < v).sum() + 0.5 * (column == v).sum()) / len(column) for v in distinct])
    torch.testing.assert_close(found, torch.special.ndtri(ranks.clamp(0.001, 0.999)), atol=1e-4, rtol=0)


def test_piecewise_codes_fill_bin_by_bin() -> None:
    """At knot t the first t pieces are 1 and the others 0; halfway through a bin its piece is one half."""
    embedding = fitted(torch.arange(9.0), num_bins=4, frequencies=0)
    with torch.no_grad():
        for p in embedding.parameters():
            p.zero_()
        embedding.piece_weight[0, :, 0] = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    found = embedding(torch.tensor([[0.0], [2.0], [3.0], [8.0], [99.0]]))[:, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 6.0, 1111.0, 1111.0]))


def test_a_missing_number_is_its_own_vector() -> None:
    """NaN gives the learned vector, and no number does."""
    embedding = fitted(LOGNORMAL)
    torch.testing.assert_close(embedding(torch.tensor([[torch.nan]]))[0], embedding.missing)
    assert not torch.allclose(embedding(torch.tensor([[0.0]]))[0], embedding.missing)


def test_a_column_without_values_still_answers() -> None:
    """Fitting to nothing (a whole column missing in training) leaves finite embeddings."""
    embedding = fitted(torch.full((5,), torch.nan))
    assert torch.isfinite(embedding(torch.tensor([[torch.nan], [3.0], [-1e30]]))).all()


def test_noise_is_for_training_only() -> None:
    """The same number has one embedding in evaluation and another one every time in training."""
    embedding = fitted(LOGNORMAL, noise=0.1)
    x = torch.ones(200, 1)
    assert torch.equal(embedding(x), embedding(x))
    embedding.train()
    moved = embedding(x) - embedding.eval()(x)
    assert 0.08 < moved.std().item() < 0.12


def test_categories_have_a_row_each_and_one_for_missing() -> None:
    """Position k of feature f is row k of table f; NaN is that feature's own missing vector."""
    embedding = CategoryEmbedding((2, 3), 4)
    found = embedding(torch.tensor([[0.0, 2.0], [1.0, torch.nan], [torch.nan, 0.0]]))
    first, second = embedding.tables
    wanted = [[first[0], second[2]], [first[1], embedding.missing[1]], [embedding.missing[0], second[0]]]
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in wanted]))


def dense(values: list[list[float]]) -> DenseEmbedding:
    torch.manual_seed(0)
    embedding = DenseEmbedding(torch.tensor([1, 2, 3]), 5, is_array=False)
    embedding.fit(torch.tensor(values))
    return embedding


def test_dense_columns_are_centred_and_share_one_scale() -> None:
    """Embedding = Linear((x - column mean) / one standard deviation over all columns)."""
    rows = [[9.0, 0.0, 0.0, 4.0], [9.0, 2.0, 0.0, 8.0]]
    embedding = dense(rows)
    standard = torch.tensor([[-1.0, 0.0, -2.0], [1.0, 0.0, 2.0]]) / (10 / 6) ** 0.5
    torch.testing.assert_close(embedding(torch.tensor(rows)), embedding.linear(standard))


def test_constant_dense_columns_keep_scale_one() -> None:
    """Columns that never vary (0.1 has no exact float32 mean) are not blown up by a rounding error."""
    embedding = dense([[0.0, 0.1, 0.1, 0.1]] * 1000)
    assert embedding.scale == 1
    assert embedding(torch.tensor([[0.0, 0.2, 0.1, 0.1]])).abs().max() < 10


def test_a_dense_feature_is_missing_when_all_of_it_is() -> None:
    """No cell at all: the learned vector. Some cells, whichever: those cells, the others at their mean."""
    embedding = dense([[0.0, 0.0, 1.0, 4.0], [0.0, 2.0, 3.0, 8.0]])
    gone, first_gone, last_gone = embedding(
        torch.tensor([[1.0, *[torch.nan] * 3], [1.0, torch.nan, 2.0, 8.0], [1.0, 1.0, 2.0, torch.nan]])
    )
    torch.testing.assert_close(gone, embedding.missing)
    torch.testing.assert_close(first_gone, embedding(torch.tensor([[1.0, 1.0, 2.0, 8.0]]))[0])
    torch.testing.assert_close(last_gone, embedding(torch.tensor([[1.0, 1.0, 2.0, 6.0]]))[0])
