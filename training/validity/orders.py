"""Deletion and insertion: modalities hidden or shown one after the other, in an explanation's order.

For a row with margin v(S) when only the modalities S are shown, and an order of its n modalities:

    deletion     AOPC = mean over k = 1..n-1 of v(all) - v(all but the first k)
    insertion    AOPC = mean over k = 1..n-1 of v(all) - v(the first k)

then the mean over rows. Area over the perturbation curve: Samek et al. 2017, "Evaluating the visualization of what a deep
neural network has learned"; the two are comprehensiveness and sufficiency of DeYoung et al. 2020, "ERASER: a benchmark to
evaluate rationalized NLP models". The steps that hide nothing or everything are the same for every order and are left out.
With few modalities all n! orders can be gone through, so that the mean order (chance), each row's
best and the best single order for all rows are exact.

Shape suffixes: S coalitions, N rows, n modalities, O orders (n!), K = n + 1 steps.
"""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.bundle.validity import Estimate, OrderFigures
from training.validity.estimates import Floats, ratio
from training.validity.games import num_players

Ints = NDArray[np.integer]
Estimator = Callable[[Floats, Callable[[Floats], Floats]], Estimate | None]  # columns (N, K) and what to make of their means


def rank_modalities(attribution_Nn: Floats) -> Ints:
    """The modalities (N, n) from the most supporting to the most opposing; of equals, the first comes first."""
    order_Nn: Ints = np.argsort(-attribution_Nn, axis=1, kind="stable")
    return order_Nn


def shown(order_n: Ints, *, insertion: bool) -> Ints:
    """The coalitions (..., K) that are shown after 0 to n steps of the orders (..., n)."""
    steps = np.cumsum(1 << order_n, axis=-1)
    steps = np.concatenate([np.zeros_like(steps[..., :1]), steps], axis=-1)
    return steps if insertion else steps[..., -1:] - steps


def order_figures(values_SN: Floats, order_Nn: Ints, estimator: Estimator, *, insertion: bool) -> OrderFigures:
    """How the orders (N, n) of an explanation fare against all orders."""
    num = num_players(values_SN)
    every_OK = shown(np.array(list(itertools.permutations(range(num)))), insertion=insertion)
    drops_ON = values_SN[-1] - values_SN[every_OK[:, 1:-1]].mean(axis=1)
    best_N = drops_ON.argmin(axis=0) if insertion else drops_ON.argmax(axis=0)
    rows, mean_O = np.arange(len(order_Nn)), drops_ON.mean(axis=1)
    own_NK = values_SN[shown(order_Nn, insertion=insertion), rows[:, None]]
    best_NK = values_SN[every_OK[best_N], rows[:, None]]
    own_N, random_N = values_SN[-1] - own_NK[:, 1:-1].mean(axis=1), drops_ON.mean(axis=0)
    room_N = drops_ON[best_N, rows] - random_N
    aopc = estimator(own_N[:, None], lambda means: means[..., 0])
    assert aopc is not None, "a mean is always defined"
    return OrderFigures(
        aopc=aopc,
        random=float(random_N.mean()),
        best=float(drops_ON[best_N, rows].mean()),
        same_order=float(mean_O.min() if insertion else mean_O.max()),
        score=estimator(np.stack([own_N - random_N, room_N], axis=1), ratio),
        curve=tuple(own_NK.mean(axis=0).tolist()),
        random_curve=tuple(values_SN[every_OK].mean(axis=(0, 2)).tolist()),
        best_curve=tuple(best_NK.mean(axis=0).tolist()),
    )
