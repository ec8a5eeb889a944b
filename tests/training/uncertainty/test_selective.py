"""Risk-coverage curves, their areas and orders, by hand."""

from typing import Any

import numpy as np
import pytest

from service.bundle.explanation import calibrate, explain
from service.bundle.manifest import CalibrationInfo, TaskInfo
from service.bundle.output import Output
from training.uncertainty.selective import aurc, order_documents, risks, row_losses, scores, select

BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
GENRES = TaskInfo(kind="multilabel", labels=("drama", "war"), outcome="genre")
DAYS = TaskInfo(kind="regression", labels=("days",), outcome="stay", training_mean=0.0)
KINDS = pytest.mark.parametrize("task", [BINARY, GENRES, DAYS], ids=lambda task: task.kind)


def made(task: TaskInfo, num_rows: int = 60, num_experts: int = 3, seed: int = 0) -> tuple[Output, Any, Any]:
    """Random experts, their mixture's explanation, and a target that the mixture half knows."""
    generator = np.random.default_rng(seed)
    num_labels = len(task.labels)
    experts = generator.normal(size=(num_rows, num_experts, num_labels)).astype(np.float32)
    weights = np.full((num_rows, num_experts), 1 / num_experts, np.float32)
    logits = experts.mean(axis=1)
    calibration = CalibrationInfo(method="none", scale=(1.0,) * num_labels, bias=(0.0,) * num_labels, num_rows=1)
    output = Output(calibrate(logits, task, calibration), logits, weights, experts)
    noisy = logits + generator.normal(size=logits.shape)
    targets = {"binary": noisy.argmax(axis=1), "multilabel": (noisy > 0).astype(np.float32), "regression": noisy[:, 0]}
    return output, targets[task.kind], explain(output, task, calibration)


def test_the_curve_is_the_running_mean_of_losses_in_order() -> None:
    """Certain rows first: 0, 0, 1, 1 gives risks 0, 0, 1/3, 1/2, and their mean is the area."""
    loss, score = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.1, 0.8, 0.2])
    np.testing.assert_allclose(risks(loss, score), [0, 0, 1 / 3, 1 / 2])
    assert aurc(loss, score) == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_the_worst_order_is_the_reverse() -> None:
    """Wrong rows first: risks 1, 1, 2/3, 1/2."""
    np.testing.assert_allclose(risks(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.1, 0.9, 0.2, 0.8])), [1, 1, 2 / 3, 1 / 2])


def test_equals_count_with_their_mean() -> None:
    """A score that knows nothing has the mean loss everywhere; of two equals each counts half."""
    loss = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(risks(loss, np.zeros(5)), np.full(5, 0.4))
    np.testing.assert_allclose(risks(loss, np.array([1, 1, 0, 2, 2])), [0, 0.25, 1 / 3, 0.375, 0.4])


def test_losses_are_those_of_the_task() -> None:
    """Wrong or not; share of wrong labels; absolute error."""
    assert row_losses(np.array([[0.6, 0.4], [0.4, 0.6]]), np.array([0, 0]), BINARY).tolist() == [0, 1]
    assert row_losses(np.array([[0.6, 0.4]]), np.array([[0.0, 0.0]]), GENRES).tolist() == [0.5]
    assert row_losses(np.array([[2.0]]), np.array([-1.5]), DAYS).tolist() == [3.5]


@KINDS
def test_every_kind_of_task_has_its_orders(task: TaskInfo) -> None:
    """Random always, disagreement with experts, and what the kind allows; a single network has nobody to disagree with."""
    expected = {
        "binary": {"confidence", "entropy", "disagreement", "experts that differ", "random"},
        "multilabel": {"confidence", "entropy", "disagreement", "experts that differ", "random"},
        "regression": {"disagreement", "expert spread", "random"},
    }[task.kind]
    output, _, explanation = made(task)
    assert set(scores(output, explanation, task)) == expected
    output, _, explanation = made(task, num_experts=1)
    assert set(scores(output, explanation, task)) == expected - {"disagreement", "experts that differ", "expert spread"}


def test_an_order_that_knows_gains_and_its_interval_says_so() -> None:
    """Confidence beats chance on rows whose label follows the model's odds; chance gains exactly nothing."""
    output, target, explanation = made(BINARY, num_rows=400)
    orders = select(output, target, explanation, BINARY, 200)
    assert orders["confidence"].gain.low is not None
    assert orders["confidence"].gain.low > 0
    random = orders["random"]
    assert (random.gain.value, random.gain.low, random.gain.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert random.aurc.value == pytest.approx(row_losses(output.prediction, target, BINARY).mean())
    assert orders["confidence"].curve[0].error == pytest.approx(random.aurc.value)
    np.testing.assert_allclose(orders["confidence"].aurc.value, orders["entropy"].aurc.value)  # one order, for two classes


@KINDS
def test_intervals_hold_their_value_and_nothing_is_nan(task: TaskInfo) -> None:
    """Every figure is a number within its interval, AUROC only where it is defined."""
    output, target, explanation = made(task)
    for order in select(output, target, explanation, task, 50).values():
        assert order.aurc.low is not None
        assert order.aurc.high is not None
        assert order.aurc.low - 1e-9 <= order.aurc.value <= order.aurc.high + 1e-9
        assert [point.coverage for point in order.curve] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        assert all((point.auroc is None) or 0 <= point.auroc <= 1 for point in order.curve)
        assert (order.curve[0].auroc is None) == (task.kind != "binary")


def test_without_resamples_there_are_no_intervals() -> None:
    """num_bootstraps = 0 gives values alone."""
    output, target, explanation = made(BINARY)
    told = order_documents(select(output, target, explanation, BINARY, 0))
    assert set(told["entropy"]["aurc"]) == {"value"}
