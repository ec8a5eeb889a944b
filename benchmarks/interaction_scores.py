"""How right, calibrated and stable explanations are where the true expert is known.

Works on plain arrays of contribution shares, whatever made them. Shape suffixes: N rows, E experts, G groups (true experts),
K bins.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.planted import NO_TRUTH

Floats = NDArray[np.floating]
Names = Sequence[str] | NDArray[np.str_]

NUM_BINS = 10
TIE = 0.05  # smaller differences of mean shares are no difference


def group_shares(share_NE: Floats, truth_N: Names) -> dict[str, list[float]]:
    """Mean contribution share of every expert (E,), per true expert."""
    truth_N = np.asarray(truth_N)
    return {str(name): share_NE[truth_N == name].mean(axis=0).tolist() for name in np.unique(truth_N)}


def dominant(mean_share_E: Sequence[float], experts: Sequence[str]) -> str:
    """The expert with the largest mean share."""
    return experts[int(np.argmax(mean_share_E))]


def top1_rates(share_NE: Floats, truth_N: Names, experts: Sequence[str]) -> dict[str, float]:
    """Per true expert, the share of its rows where the row's own dominant expert is the true one."""
    truth_N, named_N = np.asarray(truth_N), np.asarray(experts)[share_NE.argmax(axis=1)]
    return {str(name): float((named_N == name)[truth_N == name].mean()) for name in np.unique(truth_N)}


def true_share(share_NE: Floats, truth_N: Names, experts: Sequence[str]) -> float:
    """The mean share of each row's true expert."""
    columns_N = [list(experts).index(str(name)) for name in truth_N]
    return float(share_NE[np.arange(len(share_NE)), columns_N].mean())


def confidence_bins(share_NE: Floats, truth_N: Names, experts: Sequence[str]) -> list[list[float]]:
    """Sums over NUM_BINS equal bins of the dominant expert's share: [rows, shares, rows where it is the true one] (K, 3).

    Sums, so that the bins of several runs add up.
    """
    confidence_N = share_NE.max(axis=1)
    right_N = np.asarray(experts)[share_NE.argmax(axis=1)] == np.asarray(truth_N)
    bin_N = np.minimum((confidence_N * NUM_BINS).astype(int), NUM_BINS - 1)
    sums = [np.bincount(bin_N, weights, NUM_BINS) for weights in (np.ones(len(bin_N)), confidence_N, right_N)]
    return np.stack(sums, axis=1).tolist()


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Expected calibration error: sum over bins of |shares - right rows| / all rows."""
    bins_K3 = np.asarray(bins, float)
    return float(np.abs(bins_K3[:, 1] - bins_K3[:, 2]).sum() / bins_K3[:, 0].sum())


def rank_agreement(first_E: Sequence[float], second_E: Sequence[float]) -> float:
    """Kendall's rank correlation of two lists of mean shares, in which differences below TIE are ties.

    The mean over pairs of experts of 1 where both lists order them alike or both tie them, -1 where they order them otherwise,
    and 0 where one ties what the other orders. No rounding: its borders would part shares that hardly differ.
    """
    orders = [_orders(np.asarray(shares, float)) for shares in (first_E, second_E)]
    alike = np.where((orders[0] == 0) & (orders[1] == 0), 1, orders[0] * orders[1])
    return float(alike.mean())


def _orders(share_E: Floats) -> Floats:
    """Of every pair of experts which has more: 1, -1, or 0 for a tie."""
    first, second = np.triu_indices(len(share_E), k=1)
    difference = share_E[first] - share_E[second]
    return np.where(np.abs(difference) < TIE, 0, np.sign(difference))


def stability(mean_shares: Sequence[Sequence[float]]) -> float:
    """Mean rank agreement over all pairs of seeds, each a list of mean shares (E,); NaN for a single seed."""
    pairs = [rank_agreement(a, b) for a, b in itertools.combinations(mean_shares, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def equal_share_gap(mean_share_E: Sequence[float], experts: Sequence[str]) -> float:
    """Additive data: half the sum over experts of |share - ideal|, where uniqueness experts ought to share equally.

    0 is ideal, 1 is all on synergy or redundancy.
    """
    unique_E = np.array([name.startswith("unique:") for name in experts], float)
    return float(np.abs(np.asarray(mean_share_E) - unique_E / unique_E.sum()).sum() / 2)


def score(share_NE: Floats, truth_N: Names, experts: Sequence[str], whole: str = "") -> dict[str, Any]:
    """Everything one run has to say of its explanations, as JSON values; rows without a true expert count in `mean_share` alone.

    `whole` is the expert that ought to decide over all rows together. Without one, each true expert is looked for in its rows.
    """
    document: dict[str, Any] = {"experts": list(experts), "mean_share": share_NE.mean(axis=0).tolist()}
    known_N = np.asarray(truth_N) != NO_TRUTH
    document["known"] = float(known_N.mean())
    if not known_N.any():
        return document | {"equal_share_gap": equal_share_gap(document["mean_share"], experts)}
    share_NE, truth_N = share_NE[known_N], np.asarray(truth_N)[known_N]
    shares = {whole: document["mean_share"]} if whole else group_shares(share_NE, truth_N)
    return document | {
        "groups": shares,
        "right": {name: dominant(mean_share_E, experts) == name for name, mean_share_E in shares.items()},
        "top1": top1_rates(share_NE, truth_N, experts),
        "true_share": true_share(share_NE, truth_N, experts),
        "bins": confidence_bins(share_NE, truth_N, experts),
    }
