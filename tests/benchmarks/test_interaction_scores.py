"""Scores of explanations on hand-made contribution shares."""

import math

import numpy as np
import pytest

from benchmarks import interaction_scores as scores

EXPERTS = ("unique:m1", "unique:m2", "synergy", "redundancy")
SHARES = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],  # unique:m1, right
        [0.2, 0.1, 0.1, 0.6],  # unique:m1, read as redundancy
        [0.0, 0.0, 0.9, 0.1],  # synergy, right
        [0.1, 0.2, 0.4, 0.3],  # synergy, right
    ]
)
TRUTH = ["unique:m1", "unique:m1", "synergy", "synergy"]


def test_group_shares() -> None:
    """Means over the rows of one true expert."""
    shares = scores.group_shares(SHARES, TRUTH)
    assert shares == {"synergy": pytest.approx([0.05, 0.1, 0.65, 0.2]), "unique:m1": pytest.approx([0.45, 0.1, 0.1, 0.35])}


def test_the_dominant_expert_is_that_of_the_mean_share() -> None:
    """Not the one that is dominant in most rows."""
    rows = np.array([[0.45, 0.55], [0.45, 0.55], [1.0, 0.0]])
    assert scores.dominant(rows.mean(axis=0).tolist(), ("synergy", "redundancy")) == "synergy"


def test_top1_counts_rows_within_their_group() -> None:
    """One of two, and two of two."""
    assert scores.top1_rates(SHARES, TRUTH, EXPERTS) == {"unique:m1": 0.5, "synergy": 1.0}


def test_true_share() -> None:
    """(0.7 + 0.2 + 0.9 + 0.4) / 4."""
    assert scores.true_share(SHARES, TRUTH, EXPERTS) == pytest.approx(0.55)


def test_calibration_error() -> None:
    """Bins 7 (one right row at 0.7), 6 (one wrong at 0.6), 9 (right at 0.9), 4 (right at 0.4): (0.3 + 0.6 + 0.1 + 0.6) / 4."""
    bins = scores.confidence_bins(SHARES, TRUTH, EXPERTS)
    assert scores.calibration_error(bins) == pytest.approx(0.4)


def test_calibrated_shares_have_no_error() -> None:
    """A share of 0.75 that is right in three rows of four; a share of 1 that is always right falls into the last bin."""
    shares, truth = np.array([[0.75, 0.25]] * 4 + [[1.0, 0.0]]), ["a", "a", "b", "a", "a"]
    bins = scores.confidence_bins(shares, truth, ("a", "b"))
    assert scores.calibration_error(bins) == pytest.approx(0)
    assert bins[-1] == [1.0, 1.0, 1.0]


def test_bins_of_runs_add_up() -> None:
    """Pooled over halves as over the whole."""
    whole = scores.confidence_bins(SHARES, TRUTH, EXPERTS)
    halves = [scores.confidence_bins(SHARES[rows], TRUTH[rows], EXPERTS) for rows in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(np.sum(halves, axis=0), whole)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.6, 0.3, 0.1], [0.5, 0.3, 0.2], 1.0),
        ([0.6, 0.3, 0.1], [0.1, 0.3, 0.6], -1.0),
        ([0.6, 0.21, 0.19], [0.6, 0.19, 0.21], 1.0),  # 0.02 is no difference
        ([0.34, 0.33, 0.33], [0.33, 0.34, 0.33], 1.0),  # nothing is ranked in either, and they agree
        ([0.34, 0.33, 0.33], [0.6, 0.3, 0.1], 0.0),  # one ranks, the other does not
        ([0.25, 0.25], [0.5, 0.5], 1.0),  # tied in both
        ([0.6, 0.3, 0.1], [0.6, 0.12, 0.28], 1 / 3),  # one pair of three the other way round
    ],
)
def test_rank_agreement(first: list[float], second: list[float], expected: float) -> None:
    """Kendall's correlation with ties below 0.05, defined where all are tied, too."""
    assert scores.rank_agreement(first, second) == pytest.approx(expected)


def test_stability_is_the_mean_over_pairs_of_seeds() -> None:
    """Three seeds, one of which ranks the other way round: (1 - 1 - 1) / 3. One seed has no pair."""
    assert scores.stability([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]) == pytest.approx(-1 / 3)
    assert math.isnan(scores.stability([[0.9, 0.1]]))


@pytest.mark.parametrize(
    ("shares", "gap"), [([0.5, 0.5, 0.0, 0.0], 0.0), ([0.0, 0.0, 0.4, 0.6], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.5)]
)
def test_equal_share_gap(shares: list[float], gap: float) -> None:
    """The distance from equal shares of the uniqueness experts."""
    assert scores.equal_share_gap(shares, EXPERTS) == pytest.approx(gap)


def test_a_run_is_scored_as_json_values() -> None:
    """All scores in one document; m1's group is right by mean share although half of its rows are not."""
    document = scores.score(SHARES, TRUTH, EXPERTS)
    assert document["right"] == {"unique:m1": True, "synergy": True}
    assert document["mean_share"] == pytest.approx([0.25, 0.1, 0.375, 0.275])
    assert set(document) == {"experts", "mean_share", "known", "groups", "right", "top1", "true_share", "bins"}


def test_rows_without_a_true_expert_are_not_scored() -> None:
    """Additive data have shares and their distance from equal ones, no right or wrong."""
    document = scores.score(SHARES, ["", "", "", ""], EXPERTS)
    assert set(document) == {"experts", "mean_share", "known", "equal_share_gap"}


def test_rows_whose_truth_is_hidden_count_in_the_mean_alone() -> None:
    """Right by the mean over all rows; top-1 by the rows that have a truth."""
    hidden = ["", *TRUTH[1:]]
    document, rest = scores.score(SHARES, hidden, EXPERTS), scores.score(SHARES[1:], TRUTH[1:], EXPERTS)
    assert document["known"] == 0.75
    assert {key: document[key] for key in ("top1", "bins", "groups")} == {key: rest[key] for key in ("top1", "bins", "groups")}
    assert document["mean_share"] == scores.score(SHARES, TRUTH, EXPERTS)["mean_share"]


def test_a_data_set_with_one_true_expert_is_read_as_a_whole() -> None:
    """Right by the mean over all rows, top-1 by each row's own true expert."""
    document = scores.score(SHARES, TRUTH, EXPERTS, whole="synergy")
    assert document["right"] == {"synergy": True}
    assert document["groups"] == {"synergy": document["mean_share"]}
    assert document["top1"] == {"unique:m1": 0.5, "synergy": 1.0}
