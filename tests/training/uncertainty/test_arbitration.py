"""Who is asked where experts differ, and whether that helps, on experts whose knowledge is known."""

import numpy as np
import pytest

from service.bundle.manifest import TaskInfo
from training.uncertainty.arbitration import Arbitration, Rows, arbitrate

BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
STAGES = TaskInfo(kind="multiclass", labels=("CN", "MCI", "AD"), outcome="stage")
NAMES = ("labs", "history", "synergy")


def rows(risks: list[list[float]], target: list[int], mixture: list[float]) -> Rows:
    """Binary rows from each expert's risk and the mixture's."""
    risk_NE, risk_N = np.array(risks), np.array(mixture)
    return Rows(np.stack([1 - risk_N, risk_N], axis=1), np.stack([1 - risk_NE, risk_NE], axis=2), np.array(target))


def experts(num_rows: int, known: tuple[float, ...], *, seed: int) -> Rows:
    """Experts that are right with these chances, independently; the mixture is the first of them."""
    generator = np.random.default_rng(seed)
    target = generator.integers(2, size=num_rows)
    right_NE = generator.random((num_rows, len(known))) < known
    risk_NE = np.where(right_NE == (target[:, None] == 1), 0.9, 0.1)
    return rows(risk_NE.tolist(), target.tolist(), risk_NE[:, 0].tolist())


def mixed(seed: int) -> Rows:
    """Three equally good experts, and a mixture that is their mean."""
    made = experts(300, (0.7, 0.7, 0.7), seed=seed)
    return Rows(made.expert_prediction.mean(axis=1), made.expert_prediction, made.target)


def decided(validation: Rows, test: Rows, *, num_bootstraps: int = 200) -> Arbitration:
    found = arbitrate(validation, test, NAMES, BINARY, num_rows=2 * len(test.target), num_bootstraps=num_bootstraps)
    assert found is not None
    return found


def test_candidates_answer_as_computed_by_hand() -> None:
    """Two rows: experts say 0.9, 0.4, 0.4 and 0.2, 0.3, 0.8; mixture 0.7 and 0.6; both are dead."""
    two = rows([[0.9, 0.4, 0.4], [0.2, 0.3, 0.8]], [1, 1], [0.7, 0.6])
    found = decided(two, two, num_bootstraps=0)
    assert {name: candidate.test.value for name, candidate in found.candidates.items()} == {
        "mixture": 1.0,
        "labs": 0.5,
        "history": 0.0,
        "synergy": 0.5,
        "majority": 0.0,
        "mean probability": 0.5,  # 0.567 and 0.433
    }
    assert found.candidates["majority"].gain.value == -1.0
    assert (found.arbiter, found.verdict, found.share) == ("mixture", "none", 0.5)


def test_a_tied_vote_goes_to_the_higher_mean_probability() -> None:
    """One for each of two stages: the one that is believed more."""
    prediction = np.array([[0.2, 0.5, 0.3]])
    two = Rows(prediction, np.array([[[0.1, 0.5, 0.4], [0.05, 0.05, 0.9]]]), np.array([2]))
    found = arbitrate(two, two, ("a", "b"), STAGES, num_rows=1, num_bootstraps=0)
    assert found is not None
    assert found.candidates["majority"].test.value == 1.0


def test_the_arbiter_is_chosen_on_validation_rows_alone() -> None:
    """The expert that was best there is asked, however badly it does on the test rows."""
    validation, test = experts(300, (0.6, 0.95, 0.5), seed=0), experts(300, (0.6, 0.2, 0.95), seed=1)
    found = decided(validation, test)
    assert found.arbiter in {"history", "logistic regression"}
    assert found.verdict == "harms"
    assert found.candidates["synergy"].gain.value > 0.2


def test_an_arbiter_that_knows_helps() -> None:
    """One expert knows much more than the mixture: asking it is a gain whose interval lies above zero."""
    found = decided(experts(300, (0.6, 0.95, 0.5), seed=0), experts(300, (0.6, 0.95, 0.5), seed=1))
    gain = found.candidates[found.arbiter].gain
    assert found.verdict == "helps"
    assert gain.value == pytest.approx(0.35, abs=0.08)
    assert found.document()["verdict"] == "helps"
    assert set(found.document()["candidates"]) == {"mixture", *NAMES, "majority", "mean probability", "logistic regression"}


def test_experts_that_know_the_same_leave_it_unclear() -> None:
    """No candidate is better than another: the interval holds zero, or the mixture itself is chosen."""
    found = decided(mixed(2), mixed(3))
    assert found.verdict in {"none", "unclear"}


def test_a_handful_of_rows_proves_nothing() -> None:
    """An expert that is right on each of 29 rows where the mixture is not: a gain without an interval, and no verdict."""
    few = rows([[0.1, 0.9, 0.2]] * 29, [1] * 29, [0.3] * 29)
    found = decided(few, few)
    assert (found.arbiter, found.verdict) == ("history", "unclear")
    assert (found.candidates["history"].gain.value, found.candidates["history"].gain.low) == (1.0, None)


def test_too_few_rows_fit_no_regression() -> None:
    """With nine rows of a class there is no regression among the candidates."""
    few = rows([[0.9, 0.2, 0.3]] * 40, [0] * 31 + [1] * 9, [0.4] * 40)
    assert "logistic regression" not in decided(few, few, num_bootstraps=0).candidates


def test_where_experts_never_differ_there_is_nothing_to_arbitrate() -> None:
    """No validation rows, or no test rows: no arbiter."""
    some, none = experts(20, (0.7, 0.7, 0.7), seed=0), Rows(np.zeros((0, 2)), np.zeros((0, 3, 2)), np.zeros(0, int))
    for validation, test in ((some, none), (none, some)):
        assert arbitrate(validation, test, NAMES, BINARY, num_rows=20, num_bootstraps=10) is None
