"""Cooperative games over modalities, exactly: Shapley values, dividends, interactions.

A game gives every coalition S of n modalities a value v(S); position S of the first axis, read as bits, holds modality i
where bit i is set. So position 0 is the empty coalition and the last is all. A row of a data set is a game of its own.

    Shapley value        phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))
                         (Shapley 1953, "A value for n-person games")
    dividend             d(S) = sum over T in S of (-1)^(|S| - |T|) v(T), what S adds that no part of it has
                         (Harsanyi 1963); phi_i = sum over S with i of d(S) / |S|: a dividend is shared equally
    interaction index    I_ij = sum over S with i and j of d(S) / (|S| - 1)
                         (Grabisch and Roubens 1999, "An axiomatic approach to the concept of interaction among players")
    interaction          v(all) - v(none) - sum_i (v(i) - v(none)) = sum over |S| >= 2 of d(S)
    interaction share    sum over rows of interaction^2 / sum over rows of (v(all) - v(none))^2, after the H statistic of
                         Friedman and Popescu 2008, "Predictive learning via rule ensembles", with nothing shown as the
                         reference in place of the mean; 0 for an additive model, and not bounded by 1

Shape suffixes: S coalitions (2^n), N rows, n modalities.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from training.validity.estimates import Floats


def num_players(values_SN: Floats) -> int:
    """Of the game whose coalitions these are."""
    num = len(values_SN).bit_length() - 1
    assert len(values_SN) == 1 << num, f"expected 2^n coalitions, found {len(values_SN)}"
    return num


def dividends(values_SN: Floats) -> Floats:
    """d(S) of every coalition (S, N): the Moebius transform of the values, one modality at a time."""
    found_SN = np.array(values_SN, np.float64)
    coalitions = np.arange(len(found_SN))
    for player in range(num_players(values_SN)):
        holding = coalitions[coalitions >> player & 1 == 1]
        found_SN[holding] -= found_SN[holding ^ 1 << player]
    return found_SN


def sizes(values_SN: Floats) -> Floats:
    """How many modalities every coalition holds (S,)."""
    return np.bitwise_count(np.arange(len(values_SN))).astype(np.float64)


def shapley_values(values_SN: Floats) -> Floats:
    """Phi (N, n)."""
    shares_SN = dividends(values_SN) / sizes(values_SN).clip(1)[:, None]
    return np.stack([shares_SN[_holding(values_SN, (player,))].sum(axis=0) for player in range(num_players(values_SN))], axis=1)


def pairs(values_SN: Floats) -> Iterator[tuple[tuple[int, int], Floats]]:
    """Every pair of modalities with its interaction index (N,)."""
    shares_SN = dividends(values_SN) / (sizes(values_SN) - 1).clip(1)[:, None]
    for i, j in itertools.combinations(range(num_players(values_SN)), 2):
        yield (i, j), shares_SN[_holding(values_SN, (i, j))].sum(axis=0)


def interactions(values_SN: Floats) -> Floats:
    """What all modalities together say beyond the sum of what each adds alone (N,)."""
    total_N: Floats = dividends(values_SN)[sizes(values_SN) >= 2].sum(axis=0)
    return total_N


def interaction_share(values_SN: Floats) -> float | None:
    """Friedman and Popescu's share; None where showing everything changes nothing."""
    whole = float(((values_SN[-1] - values_SN[0]) ** 2).sum())
    return float((interactions(values_SN) ** 2).sum()) / whole if whole > 0 else None


def _holding(values_SN: Floats, players: tuple[int, ...]) -> Floats:
    """Which coalitions (S,) hold all of these modalities."""
    wanted = sum(1 << player for player in players)
    return np.arange(len(values_SN)) & wanted == wanted
