from collections.abc import Callable

import numpy as np
import pytest

from service.bundle.validity import Estimate
from training.validity.estimates import Floats
from training.validity.orders import order_figures, rank_modalities, shown

#                none  1    2    12   3    13   23   123
BY_HAND = np.array([0.0, 1.0, 2.0, 5.0, 0.0, 1.0, 2.0, 6.0])[:, None]


def plain(columns: Floats, function: Callable[[Floats], Floats]) -> Estimate | None:
    """Without an interval."""
    value = float(function(columns.mean(axis=0)))
    return Estimate(value=value) if np.isfinite(value) else None


def test_what_is_shown_after_every_step() -> None:
    """Order 2, 1, 3: deletion leaves 123, 13, 3 and none; insertion shows none, 2, 12 and 123."""
    order = np.array([1, 0, 2])
    assert shown(order, insertion=False).tolist() == [0b111, 0b101, 0b100, 0]
    assert shown(order, insertion=True).tolist() == [0, 0b010, 0b011, 0b111]


def test_the_most_supporting_comes_first() -> None:
    """By signed contribution, not by size; of equals the first."""
    assert rank_modalities(np.array([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]])).tolist() == [[2, 0, 1], [0, 1, 2]]


def test_deletion_by_hand() -> None:
    """Hiding 2 leaves 1, then hiding 1 leaves 0: the AOPC is 6 - 1/2, which no order exceeds; chance is 6 - 11/6."""
    found = order_figures(BY_HAND, np.array([[1, 0, 2]]), plain, insertion=False)
    assert (found.aopc.value, found.best) == (5.5, 5.5)
    assert found.random == pytest.approx(6 - (8 / 3 + 1) / 2)
    assert found.score == Estimate(value=1.0)
    assert found.curve == found.best_curve == (6, 1, 0, 0)
    assert found.random_curve == pytest.approx((6, 8 / 3, 1, 0))
    worst = order_figures(BY_HAND, np.array([[2, 0, 1]]), plain, insertion=False)
    assert worst.aopc.value == 2.5
    assert worst.score is not None
    assert worst.score.value == pytest.approx(-1.25)


def test_insertion_by_hand() -> None:
    """Showing 2 gives 2, then 1 gives 5: 6 - 7/2 of the margin is unsaid, and no order leaves less."""
    found = order_figures(BY_HAND, np.array([[1, 0, 2]]), plain, insertion=True)
    assert (found.aopc.value, found.best, found.curve) == (2.5, 2.5, (0, 2, 5, 6))
    assert found.score == Estimate(value=1.0)


def test_one_order_for_all_rows_is_told() -> None:
    """Two rows that need opposite orders: each row's best is perfect, the best single order no better than chance."""
    values = np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]).T
    for insertion, best in ((False, 1.0), (True, 0.0)):
        found = order_figures(values, np.array([[0, 1], [1, 0]]), plain, insertion=insertion)
        assert (found.aopc.value, found.best, found.same_order, found.random) == (best, best, 0.5, 0.5)


def test_where_all_orders_are_equal_there_is_no_score() -> None:
    """Nothing to rank, nothing to divide by."""
    found = order_figures(np.ones((8, 5)), np.tile([0, 1, 2], (5, 1)), plain, insertion=False)
    assert (found.aopc.value, found.best, found.score) == (0.0, 0.0, None)
