"""Selective prediction: how wrong is the model on the rows it keeps, when the least certain are set aside first?

Rows are put in order by a score of uncertainty; over the k most certain of N rows the mean loss is the risk at coverage k / N.
The area under that risk-coverage curve, AURC = mean over k of risk_k (Geifman and El-Yaniv, NeurIPS 2017; Geifman, Uziel and
El-Yaniv, ICLR 2019), tells orders apart: lower is better, the mean loss itself is what a random order reaches. Rows with
equal scores are told apart by nobody, so each counts with their mean loss: the expectation over all their orders.

The loss of a row: wrong or not (binary, multiclass), share of wrong labels (multilabel), absolute error (regression).
Shapes: N rows, E experts, C labels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, Floats, decide
from service.bundle.manifest import MetricValue, TaskInfo
from service.bundle.output import Output
from service.bundle.uncertainty import disagreement, entropy
from training.tasks.metrics import LABEL_THRESHOLD, auroc

Ints = NDArray[np.intp]
COVERAGES = tuple(round(1 - i / 10, 1) for i in range(10))  # of the curve that is kept
RANDOM = "random"
FEWEST = 30  # rows, for an interval to mean anything


@dataclass(frozen=True, slots=True)
class Point:
    """The rows kept at one coverage."""

    coverage: float
    error: float  # mean loss of the rows kept
    auroc: float | None  # of the rows kept; None where it is not defined


@dataclass(frozen=True, slots=True)
class Order:
    """How good one score is at setting aside the rows that are wrong."""

    aurc: MetricValue
    gain: MetricValue  # the random order's area less this one's, on the same resamples
    curve: tuple[Point, ...]


def row_losses(prediction_NC: Floats, target: NDArray[Any], task: TaskInfo) -> Floats:
    """The loss of every row (N,), as this module says."""
    if task.kind == "regression":
        error_N: Floats = np.abs(prediction_NC[:, 0].astype(np.float64) - target.reshape(-1))
        return error_N
    if task.kind == "multilabel":
        wrong_N: Floats = ((prediction_NC >= LABEL_THRESHOLD) != (target == 1)).mean(axis=1)
        return wrong_N
    return (decide(prediction_NC, task) != target).astype(np.float64)


def scores(output: Output, explanation: Explanation, task: TaskInfo) -> dict[str, Floats]:
    """Every score of uncertainty (N,) that the task has, higher is less certain; for two classes the first two are one order."""
    prediction_NC, several = output.prediction.astype(np.float64), output.expert_weights.shape[1] > 1
    found: dict[str, Floats] = {}
    if task.kind == "multilabel":
        found["confidence"] = 1 - np.maximum(prediction_NC, 1 - prediction_NC).mean(axis=1)
    elif task.kind != "regression":
        found["confidence"] = 1 - np.take_along_axis(prediction_NC, explanation.label[:, None], axis=1)[:, 0]
    if task.kind != "regression":
        found["entropy"] = entropy(output.prediction, task)
    if several:
        found["disagreement"] = disagreement(explanation.contribution)
        if task.kind == "regression":
            found["expert spread"] = _spread(output)
        else:
            found["experts that differ"] = 1 - explanation.agreement
    return {**found, RANDOM: np.zeros(len(prediction_NC))}


def _spread(output: Output) -> Floats:
    """The experts' weighted standard deviation around the mixture (N,), in the outcome's unit."""
    distance_NE = output.expert_logits[:, :, 0].astype(np.float64) - output.logits[:, :1]
    spread_N: Floats = np.sqrt((output.expert_weights * distance_NE**2).sum(axis=1))
    return spread_N


def risks(loss_N: Floats, score_N: Floats) -> Floats:
    """The risk-coverage curve (N,): the mean loss of the k most certain rows, k from 1."""
    order, group_N = _ordered(score_N)
    return _risks(loss_N[order], group_N)


def aurc(loss_N: Floats, score_N: Floats) -> float:
    """The area under the risk-coverage curve."""
    return float(risks(loss_N, score_N).mean())


def _ordered(score_N: Floats) -> tuple[Ints, Ints]:
    """Rows from certain to uncertain, and for each of them the number of its group of equals."""
    order = np.argsort(score_N, kind="stable")
    rises_N = (np.diff(score_N[order], prepend=score_N[order[0]]) > 0).astype(np.intp)
    return order, np.cumsum(rises_N)


def _risks(loss_N: Floats, group_N: Ints) -> Floats:
    """Of ordered losses."""
    count = np.maximum(np.bincount(group_N), 1)
    expected_N = (np.bincount(group_N, weights=loss_N) / count)[group_N]
    risk_N: Floats = np.cumsum(expected_N) / np.arange(1, len(loss_N) + 1)
    return risk_N


def select(
    output: Output, target: NDArray[Any], explanation: Explanation, task: TaskInfo, num_bootstraps: int
) -> dict[str, Order]:
    """Every order of the rows, with 95 % bootstrap intervals over rows; the resamples are the same for all."""
    loss_N = row_losses(output.prediction, target, task)
    return {
        name: _order(loss_N, score_N, num_bootstraps, _curve(output.prediction, target, loss_N, score_N, task))
        for name, score_N in scores(output, explanation, task).items()
    }


def _order(loss_N: Floats, score_N: Floats, num_bootstraps: int, curve: tuple[Point, ...]) -> Order:
    order, group_N = _ordered(score_N)
    value, drawn = aurc(loss_N, score_N), []
    for drawn_rows in resamples(len(order), num_bootstraps):
        count_N = np.bincount(drawn_rows, minlength=len(order))
        rows = np.repeat(np.arange(len(order)), count_N[order])  # of the ordered rows, each as often as it was drawn
        loss = loss_N[order[rows]]
        drawn.append((_risks(loss, group_N[rows]).mean(), loss.mean()))
    area, mean = np.array(drawn).reshape(-1, 2).T
    return Order(with_interval(value, area), with_interval(float(loss_N.mean()) - value, mean - area), curve)


def resamples(num_rows: int, count: int) -> Iterator[Ints]:
    """Rows drawn with replacement, `count` times; the same at every call, so that differences are paired.

    None of too few rows: the bootstrap of a handful of rows says less than it seems to.
    """
    generator = np.random.default_rng(0)
    count = count if num_rows >= FEWEST else 0
    return (generator.integers(num_rows, size=num_rows) for _ in range(count))


def with_interval(value: float, drawn: Floats) -> MetricValue:
    """A value with the quantiles of its resamples, moved so that their mean is the value (as metrics have it)."""
    if len(drawn) == 0:
        return MetricValue(value=value)
    low, high = np.quantile(drawn, [0.025, 0.975]) + value - drawn.mean()
    return MetricValue(value=value, low=float(low), high=float(high))


def _curve(prediction_NC: Floats, target: NDArray[Any], loss_N: Floats, score_N: Floats, task: TaskInfo) -> tuple[Point, ...]:
    risk_N = risks(loss_N, score_N)
    shuffled = np.random.default_rng(0).permutation(len(loss_N))  # among equals chance decides
    order = shuffled[np.argsort(score_N[shuffled], kind="stable")]
    points = []
    for coverage in COVERAGES:
        num_kept = max(1, round(coverage * len(loss_N)))
        kept = order[:num_kept]
        area = _auroc(prediction_NC[kept], target[kept], task)
        points.append(Point(coverage, float(risk_N[num_kept - 1]), area))
    return tuple(points)


def _auroc(prediction_NC: Floats, target_N: NDArray[Any], task: TaskInfo) -> float | None:
    if task.kind in {"binary", "multiclass"} and len(np.unique(target_N)) == len(task.labels):
        return auroc(prediction_NC, target_N, task)
    return None


def order_documents(orders: Mapping[str, Order]) -> dict[str, Any]:
    """As they stand in metrics.json."""
    return {
        name: {
            "aurc": order.aurc.model_dump(exclude_none=True),
            "gain": order.gain.model_dump(exclude_none=True),
            "curve": [{"coverage": p.coverage, "error": p.error, "auroc": p.auroc} for p in order.curve],
        }
        for name, order in orders.items()
    }
