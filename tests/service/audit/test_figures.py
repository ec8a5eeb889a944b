"""AUROC, Brier score and calibration against their definitions, and by model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from service.audit.entries import Judged
from service.audit.figures import auroc, auroc_error, brier, calibration, figures, figures_by_model

judged_pairs = st.lists(st.tuples(st.integers(0, 5).map(lambda tenth: tenth / 5), st.booleans()), min_size=1, max_size=40)


def judged(probability: float, event: bool, version: str = "1.0.0") -> Judged:
    return Judged("tiny", version, probability, event)


def test_figures_by_hand() -> None:
    """Three of the four pairs of an event and another are in order; one event more than half an expected one too few."""
    found = figures([0.9, 0.4, 0.6, 0.1], [True, True, False, False])
    assert (found.count, found.events, found.auroc) == (4, 2, 0.75)
    assert found.brier == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found.calibration == pytest.approx(0.0)


@given(judged_pairs)
def test_figures_are_those_of_their_definitions(pairs: list[tuple[float, bool]]) -> None:
    """AUROC counts pairs, ties as half; scikit-learn agrees on it and on the Brier score."""
    p, y = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    events, others = p[y], p[~y]
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p, labels=[False, True]))
    if not len(events) or not len(others):
        assert math.isnan(auroc(p, y))
        return
    wins = (events[:, None] > others).mean() + (events[:, None] == others).mean() / 2
    assert auroc(p, y) == pytest.approx(wins)
    assert auroc(p, y) == pytest.approx(roc_auc_score(y, p))
    assert len(events) < 2 or len(others) < 2 or 0 <= auroc_error(p, y) <= 0.75


def test_the_error_of_an_auroc_is_what_repetition_shows() -> None:
    """The spread of AUROCs of the same model over many samples of patients, which the formula foretells from each alone."""
    rng = np.random.default_rng(0)
    y = np.arange(200) < 20
    risks = [rng.normal(size=200) + 1.19 * y for _ in range(2000)]
    spread = np.std([auroc(p, y) for p in risks])
    assert np.mean([auroc_error(p, y) for p in risks]) == pytest.approx(spread, rel=0.05)


def test_the_error_of_an_auroc_by_hand() -> None:
    """Three of four pairs in order: of the events one is above both others and one above one, and so the other way round."""
    p, y = np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False])
    assert auroc_error(p, y) == pytest.approx(math.sqrt(0.125 / 2 + 0.125 / 2))
    assert math.isnan(auroc_error(p, np.array([True, False, False, False])))


def test_more_events_than_foretold_are_above_nought() -> None:
    """The sign says which way: here risks are stated too low."""
    assert calibration(np.array([0.1, 0.1]), np.array([True, False])) == pytest.approx(0.4)


def test_without_outcomes_there_is_a_count_and_nothing_else() -> None:
    """No figure is made up."""
    found = figures([], [])
    assert (found.count, found.events) == (0, 0)
    assert all(map(math.isnan, (found.auroc, found.auroc_error, found.brier, found.calibration)))


def test_each_version_is_judged_by_its_own_predictions() -> None:
    """A new version does not inherit what the old one did."""
    found = figures_by_model([judged(0.9, True, "2"), judged(0.9, False, "1"), judged(0.8, True, "2")])
    assert [(key, told.count, told.events) for key, told in found.items()] == [(("tiny", "1"), 1, 0), (("tiny", "2"), 2, 2)]
