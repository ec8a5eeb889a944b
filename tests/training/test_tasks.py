import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from service.bundle.manifest import TaskInfo
from training.tasks import LOWER_IS_BETTER, Classification, is_better, make_task
from training.tasks.metrics import (
    accuracy,
    auprc,
    auroc,
    brier,
    debiased_calibration_error,
    expected_calibration_error,
    f1,
    log_loss,
)

BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
THREE = TaskInfo(kind="multiclass", labels=("a", "b", "c"), outcome="kind")


def drawn(num_classes: int, num_rows: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (N, C) and targets drawn from them, so they are calibrated."""
    generator = np.random.default_rng(seed)
    prediction = generator.dirichlet(np.ones(num_classes), num_rows)
    target = np.array([generator.choice(num_classes, p=p) for p in prediction])
    return prediction.astype(np.float32), target


def binary(risks: list[float], events: list[int]) -> tuple[np.ndarray, np.ndarray]:
    risk = np.array(risks)
    return np.stack([1 - risk, risk], axis=1), np.array(events)


def test_binary_metrics_are_scikit_learns() -> None:
    """AUROC, average precision, Brier score, log loss, accuracy and F1 of the event."""
    p, y = drawn(2)
    risk, label = p[:, 1].astype(float), (p[:, 1] >= 0.5).astype(int)
    assert auroc(p, y, BINARY) == pytest.approx(sk.roc_auc_score(y, risk))
    assert auprc(p, y, BINARY) == pytest.approx(sk.average_precision_score(y, risk))
    assert brier(p, y, BINARY) == pytest.approx(sk.brier_score_loss(y, risk), rel=1e-5)
    assert log_loss(p, y, BINARY) == pytest.approx(sk.log_loss(y, risk), rel=1e-4)
    assert accuracy(p, y, BINARY) == pytest.approx(sk.accuracy_score(y, label))
    assert f1(p, y, BINARY) == pytest.approx(sk.f1_score(y, label))


def test_multiclass_metrics_are_scikit_learns() -> None:
    """One-vs-rest macro AUROC, macro average precision and F1, Brier summed over classes."""
    p, y = drawn(3)
    p64 = p.astype(float) / p.astype(float).sum(axis=1, keepdims=True)
    assert auroc(p, y, THREE) == pytest.approx(sk.roc_auc_score(y, p64, multi_class="ovr", average="macro"))
    assert auprc(p, y, THREE) == pytest.approx(np.mean([sk.average_precision_score(y == c, p[:, c]) for c in range(3)]))
    assert brier(p, y, THREE) == pytest.approx(np.mean([((row - np.eye(3)[t]) ** 2).sum() for row, t in zip(p, y, strict=True)]))
    assert log_loss(p, y, THREE) == pytest.approx(sk.log_loss(y, p64), rel=1e-4)
    assert accuracy(p, y, THREE) == pytest.approx(sk.accuracy_score(y, p.argmax(axis=1)))
    assert f1(p, y, THREE) == pytest.approx(sk.f1_score(y, p.argmax(axis=1), average="macro"))


def test_decisions_follow_the_tasks_threshold() -> None:
    """With threshold 0.2 a risk of 0.3 is a predicted event."""
    task = BINARY.model_copy(update={"threshold": 0.2})
    p, y = binary([0.3, 0.1], [1, 0])
    assert accuracy(p, y, task) == 1.0
    assert accuracy(p, y, BINARY) == 0.5


def test_certain_and_wrong_is_finite() -> None:
    """A probability of 0 for what happened costs -log 1e-7, not infinity."""
    assert log_loss(*binary([0.0], [1]), BINARY) == pytest.approx(-np.log(1e-7))


def test_calibration_error_by_hand() -> None:
    """Three rows in one bin, one in another: (|0.31 + 0.32 + 0.33 - 1| + |0.9 - 1|) / 4."""
    p, y = binary([0.28, 0.30, 0.32, 0.9], [1, 0, 0, 1])
    assert expected_calibration_error(p, y, BINARY) == pytest.approx((abs(0.9 - 1) + abs(0.9 - 1)) / 4)
    assert expected_calibration_error(*binary([1.0, 0.0], [1, 0]), BINARY) == 0.0
    assert expected_calibration_error(*binary([1.0, 0.0], [0, 1]), BINARY) == 1.0


def test_multiclass_calibration_error_is_of_the_largest_probability() -> None:
    """Stated 0.5 twice, right once: 0. Stated 0.7 and wrong: 0.7."""
    p = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert expected_calibration_error(p, np.array([0, 1, 0]), THREE) == pytest.approx(0.7 / 3)


def test_debiasing_takes_off_what_chance_adds() -> None:
    """Calibrated predictions: the plain error is well above 0, the debiased one much nearer. A real gap stays."""
    pairs = [
        (expected_calibration_error(*d, BINARY), debiased_calibration_error(*d, BINARY))
        for d in (drawn(2, 1000, s) for s in range(8))
    ]
    plain, debiased = np.mean(pairs, axis=0)
    assert 0 <= debiased < 0.7 * plain
    generator = np.random.default_rng(0)
    p, y = binary([0.9] * 2000, generator.integers(2, size=2000).tolist())
    assert debiased_calibration_error(p, y, BINARY) == pytest.approx(0.4, abs=0.03)


@settings(max_examples=6, deadline=None)
@given(num_rows=st.integers(10, 60), num_classes=st.integers(2, 4), seed=st.integers(0, 99))
def test_intervals_hold_their_value(num_rows: int, num_classes: int, seed: int) -> None:
    """Every metric lies inside its interval, whatever the rows."""
    p, y = drawn(num_classes, num_rows, seed)
    y[:num_classes] = range(num_classes)
    task = BINARY if num_classes == 2 else THREE.model_copy(update={"labels": tuple("abcd"[:num_classes])})
    for name, metric in make_task(task).evaluate(p, y, num_bootstraps=20).items():
        assert metric.low is not None, name
        assert metric.high is not None, name
        assert metric.low - 1e-9 <= metric.value <= metric.high + 1e-9, name
        assert metric.low >= 0, name
        assert name == "log_loss" or metric.high <= 2, name


def test_bounded_metrics_have_bounded_intervals() -> None:
    """No interval of a share or an area reaches above 1."""
    p, y = binary([0.1, 0.2, 0.3, 0.35, 0.4, 0.7, 0.8, 0.95, 0.99, 0.6], [0, 0, 0, 1, 0, 1, 1, 1, 1, 0])
    for name, metric in make_task(BINARY).evaluate(p, y, num_bootstraps=200).items():
        assert metric.high is not None
        assert name == "log_loss" or metric.high <= 1, (name, metric)


def test_intervals_are_reproducible_and_shrink_with_rows() -> None:
    """The same rows and seed give the same interval; four times the rows about half the width."""
    few, many = drawn(2, 100), drawn(2, 1600)
    first, again = (make_task(BINARY).evaluate(*few, num_bootstraps=100) for _ in range(2))
    assert first == again
    assert first != make_task(BINARY).evaluate(*few, num_bootstraps=100, seed=1)
    wide, narrow = first["auroc"], make_task(BINARY).evaluate(*many, num_bootstraps=100)["auroc"]
    assert 0.15 < (narrow.high - narrow.low) / (wide.high - wide.low) < 0.4  # type: ignore[operator]


def test_no_bootstraps_no_interval() -> None:
    """num_bootstraps = 0 gives values alone."""
    values = make_task(BINARY).evaluate(*drawn(2), num_bootstraps=0)
    assert set(values) == set(Classification.metrics)
    assert all(v.low is None and v.high is None for v in values.values())


def test_classes_too_rare_to_resample_have_no_interval() -> None:
    """With one row per class hardly a resample holds them all: values without intervals, and no endless search."""
    labels = tuple(f"c{i}" for i in range(25))
    task = TaskInfo(kind="multiclass", labels=labels, outcome="kind")
    values = make_task(task).evaluate(np.eye(25, dtype=np.float32), np.arange(25), num_bootstraps=20)
    assert values["auroc"].value == 1.0
    assert values["auroc"].low is None


def test_better_means_higher_except_for_losses() -> None:
    """A loss improves downwards, the others upwards; NaN is never an improvement, and anything beats nothing."""
    assert is_better("auroc", 0.8, 0.7)
    assert not is_better("auroc", 0.7, 0.7)
    assert all(is_better(name, 0.1, 0.2) and not is_better(name, 0.2, 0.1) for name in LOWER_IS_BETTER)
    assert is_better("auroc", 0.0, None)
    assert not is_better("auroc", float("nan"), None)
    assert not is_better("auroc", float("nan"), 0.5)


def test_base_rates() -> None:
    """Log frequencies around 0, times class weights; log odds per label; nothing for numbers; classes without rows are finite."""
    binary = make_task(TaskInfo(kind="binary", labels=("a", "b"), outcome="b"))
    target = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(binary.base_rate(target, None), [np.log(3) / 2, -np.log(3) / 2], rtol=1e-6)
    balanced = binary.base_rate(target, binary.balanced_weights(target))
    np.testing.assert_allclose(balanced, [0, 0], atol=1e-6)
    assert np.isfinite(binary.base_rate(np.zeros(5, int), None).numpy()).all()
    several = make_task(TaskInfo(kind="multilabel", labels=("a", "b"), outcome="labels"))
    present = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(several.base_rate(present, None), [np.log(3), -np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(several.base_rate(present, several.balanced_weights(present)), [0, 0], atol=1e-6)
    number = make_task(TaskInfo(kind="regression", labels=("days",), outcome="days", training_mean=0.0))
    assert number.base_rate(np.array([1.0, 2.0]), None).tolist() == [0]
