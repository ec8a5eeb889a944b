"""When experts name different labels, is there anybody to ask who is right more often than the mixture?

Only the rows where the experts' own labels differ (the paper's Table 3) are looked at. Candidates: the mixture, each expert
alone, the majority of experts (ties go to the higher mean probability), the mean of their probabilities, and a small
logistic regression of their margins. All that is chosen or fitted is so on validation rows: the candidate that was right most
often there (the regression: cross-validated; the first of equals, the mixture before all) is the arbiter. Test rows only
tell its gain over the mixture, with a paired bootstrap interval, whatever it turns out to be.
Shapes: N rows, E experts, C labels, K candidates, S resamples.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, Floats, decide
from service.bundle.manifest import MetricValue, TaskInfo
from training.uncertainty.selective import resamples, with_interval

Ints = NDArray[np.integer]
MIXTURE, REGRESSION = "mixture", "logistic regression"
_FOLDS = 5
_FEWEST = 10  # rows of every class, to fit a regression to
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a split where experts differ."""

    prediction: Floats  # (N, C), the mixture's
    expert_prediction: Floats  # (N, E, C)
    target: Ints  # (N,)

    @classmethod
    def of(cls, prediction_NC: Floats, explanation: Explanation, target: NDArray[Any], task: TaskInfo) -> "Rows":
        """Those among a split's rows."""
        rows = disputed(explanation, task)
        return cls(prediction_NC[rows], explanation.expert_prediction[rows], target[rows])

    def margins(self) -> Floats:
        """What a regression sees (N, E * (C - 1)): each expert's log probabilities against the first label's."""
        logs_NEC = np.log(np.clip(self.expert_prediction.astype(np.float64), _EPS, 1))
        margins: Floats = (logs_NEC[:, :, 1:] - logs_NEC[:, :, :1]).reshape(len(logs_NEC), -1)
        return margins


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who could be asked, and how often that would have been right."""

    validation: float
    test: MetricValue  # accuracy on test rows where experts differ
    gain: MetricValue  # over the mixture, on the same rows


@dataclass(frozen=True, slots=True)
class Arbitration:
    """The candidates, and which one validation rows chose."""

    num_validation: int
    num_test: int
    share: float  # of the test rows, where experts differ
    candidates: Mapping[str, Candidate]
    arbiter: str

    @property
    def verdict(self) -> str:
        """Whether the arbiter helps: its interval of the gain lies above 0, below 0, or around it; without one nobody knows."""
        gain = self.candidates[self.arbiter].gain
        if self.arbiter == MIXTURE:
            return "none"
        if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
            return "unclear"
        return "helps" if gain.low > 0 else "harms"

    def document(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        told = {
            name: {"validation": c.validation, "test": c.test.model_dump(), "gain": c.gain.model_dump()}
            for name, c in self.candidates.items()
        }
        plain = {key: value for key, value in asdict(self).items() if key != "candidates"}
        return {**plain, "candidates": told, "verdict": self.verdict}


def disputed(explanation: Explanation, task: TaskInfo) -> NDArray[np.bool_]:
    """In which rows (N,) do the experts name different labels?"""
    own_NE = decide(explanation.expert_prediction, task)
    return np.asarray((own_NE != own_NE[:, :1]).any(axis=1))


def arbitrate(
    validation: Rows, test: Rows, names: tuple[str, ...], task: TaskInfo, *, num_rows: int, num_bootstraps: int
) -> Arbitration | None:
    """Choose on validation rows, measure on test rows (`num_rows` in all); None where experts differ in none of either."""
    if len(validation.target) == 0 or len(test.target) == 0:
        return None
    answers = _answers(validation, names, task)
    right = {name: float((label_N == validation.target).mean()) for name, label_N in answers.items()}
    answers = _answers(test, names, task)
    if (fitted := _regression(validation, test, task)) is not None:
        right[REGRESSION], answers[REGRESSION] = fitted
    return Arbitration(
        num_validation=len(validation.target),
        num_test=len(test.target),
        share=len(test.target) / num_rows,
        candidates=_candidates(right, answers, test.target, num_bootstraps),
        arbiter=max(right, key=lambda name: right[name]),
    )


def _answers(rows: Rows, names: tuple[str, ...], task: TaskInfo) -> dict[str, Ints]:
    """The label (N,) each candidate that needs no fit would answer; the mixture first."""
    mean_NC = rows.expert_prediction.mean(axis=1)
    own_NE = decide(rows.expert_prediction, task)
    votes_NC = (own_NE[:, :, None] == np.arange(len(task.labels))).sum(axis=1)
    return {
        MIXTURE: decide(rows.prediction, task),
        **{name: own_NE[:, e] for e, name in enumerate(names)},
        "majority": (votes_NC + 0.5 * mean_NC).argmax(axis=1),  # half a probability never outweighs a vote
        "mean probability": decide(mean_NC, task),
    }


def _regression(validation: Rows, test: Rows, task: TaskInfo) -> tuple[float, Ints] | None:
    """Its cross-validated accuracy on validation rows, and its answers (N,) on test rows; None for too few rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(validation.target, minlength=len(task.labels))
    if counts.min() < _FEWEST:
        return None
    model, x = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), validation.margins()
    crossed_NC = cross_val_predict(model, x, validation.target, cv=_FOLDS, method="predict_proba")
    right = float((decide(crossed_NC, task) == validation.target).mean())
    answered_NC = model.fit(x, validation.target).predict_proba(test.margins())
    return right, decide(answered_NC, task)


def _candidates(
    validation: Mapping[str, float], answers: Mapping[str, Ints], target_N: Ints, num_bootstraps: int
) -> dict[str, Candidate]:
    right_KN = np.array([label_N == target_N for label_N in answers.values()], np.float64)
    drawn_KS = np.array([right_KN[:, rows].mean(axis=1) for rows in resamples(len(target_N), num_bootstraps)])
    drawn_KS = drawn_KS.reshape(-1, len(right_KN)).T
    rate_K = right_KN.mean(axis=1)  # the mixture first
    return {
        name: Candidate(
            validation=validation[name],
            test=with_interval(float(rate_K[k]), drawn_KS[k]),
            gain=with_interval(float(rate_K[k] - rate_K[0]), drawn_KS[k] - drawn_KS[0]),
        )
        for k, name in enumerate(answers)
    }
