"""Coverage that is promised is kept, thresholds are the quantiles they should be, and too few rows promise nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.regression import SplitConformalRegressor
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from service.bundle.explanation import Explanation, calibrate, explain
from service.bundle.manifest import CalibrationInfo, TaskInfo, UncertaintyInfo
from service.bundle.output import Output
from service.bundle.uncertainty import assess, class_scores, within
from training.uncertainty.config import UncertaintyConfig
from training.uncertainty.conformal import covered, fit_uncertainty, measure, threshold

BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
STAGES = TaskInfo(kind="multiclass", labels=("CN", "MCI", "AD"), outcome="stage")
GENRES = TaskInfo(kind="multilabel", labels=("drama", "war"), outcome="genre")
DAYS = TaskInfo(kind="regression", labels=("days",), outcome="stay", training_mean=0.0)
NUM_SEEDS = 200


def explained(logits_NC: Any, task: TaskInfo) -> tuple[np.ndarray[Any, Any], Explanation]:
    """Predictions of two experts that say the same, and their explanation."""
    logits = np.asarray(logits_NC, np.float32)
    calibration = CalibrationInfo(method="none", scale=(1.0,) * logits.shape[1], bias=(0.0,) * logits.shape[1], num_rows=1)
    experts = np.repeat(logits[:, None], 2, axis=1)
    output = Output(calibrate(logits, task, calibration), logits, np.full((len(logits), 2), 0.5, np.float32), experts)
    return output.prediction, explain(output, task, calibration)


def fitted(logits_NC: Any, target: Any, task: TaskInfo, coverage: float = 0.9) -> UncertaintyInfo:
    prediction, explanation = explained(logits_NC, task)
    config = UncertaintyConfig(coverage=coverage)
    return fit_uncertainty(prediction, np.asarray(target), explanation, task=task, config=config, guarantee="exact")


def draw(task: TaskInfo, num_rows: int, generator: np.random.Generator) -> tuple[Any, Any]:
    """Exchangeable rows that a model half understands: logits (N, C) and targets. Of classes the last is rare (7 %)."""
    num_labels, noise = len(task.labels), generator.normal
    if task.kind == "regression":
        logits = noise(size=(num_rows, 1))
        return logits, (logits[:, 0] + noise(size=num_rows)).astype(np.float32)
    if task.kind == "multilabel":
        target = (generator.random((num_rows, num_labels)) < [0.5, 0.1]).astype(np.float32)
        return 2 * target - 2 + noise(size=(num_rows, num_labels)), target
    rare = [0.93, 0.07] if num_labels == 2 else [0.5, 0.43, 0.07]
    target = generator.choice(num_labels, size=num_rows, p=rare)
    return 2 * np.eye(num_labels)[target] + np.log(rare) + noise(size=(num_rows, num_labels)), target


@pytest.mark.parametrize(
    ("scores", "coverage", "expected"),
    [(range(1, 10), 0.9, 9), (range(1, 20), 0.9, 18), (range(1, 100), 0.5, 50), (range(1, 9), 0.9, None), ((), 0.5, None)],
)
def test_a_threshold_is_the_smallest_score_that_keeps_the_promise(scores: Any, coverage: float, expected: float | None) -> None:
    """Of n scores the ceil((n + 1) coverage)-th; where that is beyond the last, none."""
    shuffled = np.random.default_rng(0).permutation(np.array(list(scores), np.float64))
    assert threshold(shuffled, coverage) == expected


def test_thresholds_are_those_computed_by_hand() -> None:
    """Per class, with a coverage of a half: of three alive rows the second score, of one dead row its only one."""
    odds = np.log([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.8, 0.2]])
    info = fitted(odds, [0, 0, 0, 1], BINARY, coverage=0.5)
    assert info.thresholds == pytest.approx((0.3, 0.8), abs=1e-6)
    assert (info.method, info.guarantee, info.num_rows) == ("class-conditional", "exact", 4)
    assert fitted(odds, [0, 0, 0, 1], BINARY).thresholds == (None, None)


def test_regression_and_multilabel_thresholds_are_those_computed_by_hand() -> None:
    """Absolute residuals; for labels the score of presence among present rows and of absence among the others."""
    assert fitted([[0.0], [1.0], [2.0]], np.float32([0.5, 3.0, 2.1]), DAYS, coverage=0.5).thresholds == pytest.approx((0.5,))
    odds = np.array([0.9, 0.6, 0.2, 0.3])
    logits = np.stack([np.log(odds / (1 - odds))] * 2, axis=1)
    info = fitted(logits, np.float32([[1, 1], [1, 1], [0, 1], [0, 1]]), GENRES, coverage=0.4)
    assert info.thresholds == pytest.approx((0.4, 0.4), abs=1e-6)  # second of (0.1, 0.4); second of (0.1, 0.4, 0.7, 0.8)
    assert info.thresholds_absent[0] == pytest.approx(0.3, abs=1e-6)  # second of (0.2, 0.3)
    assert info.thresholds_absent[1] is None  # nowhere absent


class Classifier(ClassifierMixin, BaseEstimator):
    """To MAPIE, a fitted classifier whose features are its probabilities."""

    classes_ = np.arange(3)

    def fit(self, x: Any, y: Any) -> "Classifier":
        return self

    def predict_proba(self, x: Any) -> Any:
        return x

    def predict(self, x: Any) -> Any:
        return x.argmax(axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Regressor(RegressorMixin, BaseEstimator):
    """To MAPIE, a fitted regressor whose feature is its prediction."""

    n_features_in_ = 1

    def fit(self, x: Any, y: Any) -> "Regressor":
        return self

    def predict(self, x: Any) -> Any:
        return x[:, 0]

    def __sklearn_is_fitted__(self) -> bool:
        return True


def test_sets_and_intervals_are_those_of_the_library() -> None:
    """MAPIE's own classifier and regressor, given the same rows, let the same labels and values through."""
    generator = np.random.default_rng(5)
    prediction = generator.dirichlet(np.ones(3), size=100)
    target = np.array([generator.choice(3, p=p) for p in prediction])
    theirs = SplitConformalClassifier(Classifier(), confidence_level=0.8, prefit=True).conformalize(prediction[:60], target[:60])
    scores = class_scores(prediction)
    limit = threshold(scores[np.arange(60), target[:60]], 0.8)
    np.testing.assert_array_equal(within(scores[60:], [limit] * 3), theirs.predict_set(prediction[60:])[1][:, :, 0])
    values, truth = prediction[:60, :1], generator.normal(size=60)
    regressor = SplitConformalRegressor(Regressor(), confidence_level=0.8, prefit=True).conformalize(values, truth)
    half_width = threshold(np.abs(values[:, 0] - truth), 0.8)
    assert half_width is not None
    np.testing.assert_allclose(regressor.predict_interval(np.array([[1.0]]))[1].ravel(), [1 - half_width, 1 + half_width])


@pytest.mark.parametrize("task", [BINARY, STAGES, GENRES, DAYS], ids=lambda task: task.kind)
def test_coverage_is_kept_for_every_class(task: TaskInfo) -> None:
    """Over many draws of held-out and new rows, each class (label, value) is covered at least as often as promised.

    With 200 held-out rows about 14 are of the rare class. Four standard errors of 200 draws are allowed for.
    """
    by_class: dict[str, list[float]] = {}
    for seed in range(NUM_SEEDS):
        generator = np.random.default_rng(seed)
        info = fitted(*draw(task, 200, generator), task)
        logits, target = draw(task, 200, generator)
        prediction, explanation = explained(logits, task)
        found = measure(prediction, target, explanation, task=task, info=info, split="test")
        for name, value in (found.coverage_by_class or {"all": found.coverage}).items():
            by_class.setdefault(name, []).append(value)
    for name, values in by_class.items():
        assert np.mean(values) >= 0.9 - 4 * np.std(values) / np.sqrt(len(values)), name


@pytest.mark.parametrize("task", [STAGES, DAYS], ids=lambda task: task.kind)
def test_coverage_is_not_bought_with_needlessly_wide_sets(task: TaskInfo) -> None:
    """What thresholds alone let through, without the stated label, holds the truth about as often as promised.

    At most 1 / (n + 1) more often, where scores are distinct.
    """
    rates = []
    for seed in range(NUM_SEEDS):
        generator = np.random.default_rng(seed)
        info = fitted(*draw(task, 400, generator), task)
        logits, target = draw(task, 400, generator)
        prediction, explanation = explained(logits, task)
        if task.kind == "regression":
            rates.append(covered(assess(prediction, explanation, task, info), prediction, target, task).mean())
        else:
            common = target == 0
            rates.append(within(class_scores(prediction), info.thresholds)[common, 0].mean())
    assert np.mean(rates) == pytest.approx(0.9, abs=0.012)


def test_marginal_coverage_would_give_up_the_rare_class() -> None:
    """Why every class has its own threshold: one for all reaches 90 % while most deaths lie outside their sets."""
    generator = np.random.default_rng(0)
    logits, target = draw(BINARY, 4000, generator)
    prediction, explanation = explained(logits, BINARY)
    scores = class_scores(prediction)
    one = threshold(np.take_along_axis(scores, target[:, None], axis=1)[:, 0], 0.9)
    inside = np.take_along_axis(within(scores, [one, one]), target[:, None], axis=1)[:, 0]
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    assert inside[target == 1].mean() < 0.5
    own = measure(prediction, target, explanation, task=BINARY, info=fitted(logits, target, BINARY), split="same")
    assert own.coverage_by_class["dead"] == pytest.approx(0.9, abs=0.01)


def test_a_class_too_rare_to_promise_anything_stays_possible() -> None:
    """With eight rows of a class nothing is ruled out for it at 90 %: all its rows are covered, and every answer abstains."""
    generator = np.random.default_rng(1)
    logits, _ = draw(BINARY, 100, generator)
    target = np.arange(100) >= 92
    info = fitted(logits, target.astype(int), BINARY)
    assert info.thresholds[0] is not None
    assert info.thresholds[1] is None
    prediction, explanation = explained(logits, BINARY)
    found = measure(prediction, target.astype(int), explanation, task=BINARY, info=info, split="test")
    assert found.coverage_by_class["dead"] == 1.0
    assert found.error_kept is None or found.abstain_rate < 1


def test_the_limit_of_disagreement_is_a_quantile_of_held_out_rows_and_strong() -> None:
    """Of 21 rows whose evidence cancels by 0 to 100 % the 95 % quantile is 0.95; where none cancels, half is the limit."""
    prediction, explanation = explained(np.zeros((21, 2)), BINARY)
    cancelled = np.linspace(0, 1, 21)
    target, config = np.zeros(21, int), UncertaintyConfig()
    for contribution, limit in ((np.stack([1 - cancelled / 2, -cancelled / 2], axis=1), 0.95), (np.ones((21, 2)), 0.5)):
        divided = replace(explanation, contribution=contribution)
        info = fit_uncertainty(prediction, target, divided, task=BINARY, config=config, guarantee="exact")
        assert info.disagreement_limit == pytest.approx(limit)


def test_what_is_measured_is_counted_by_hand() -> None:
    """Four rows: sets of one, one, two and one label; three hold the truth; kept rows are wrong in one of three."""
    prediction, explanation = explained(np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.1, 0.9]]), BINARY)
    info = fitted(np.log([[0.5, 0.5]]), [0], BINARY).model_copy(update={"thresholds": (0.3, 0.7)})
    found = measure(prediction, np.array([0, 1, 1, 1]), explanation, task=BINARY, info=info, split="test")
    assert (found.coverage, found.mean_set_size, found.abstain_rate) == (0.75, 1.25, 0.25)
    assert found.coverage_by_class == {"alive": 1.0, "dead": pytest.approx(2 / 3)}
    assert (info.rows_by_class, found.rows_by_class) == ({"alive": 1, "dead": 0}, {"alive": 1, "dead": 3})
    assert (found.error, found.error_kept, found.error_abstained) == (0.5, pytest.approx(1 / 3), 1.0)
    assert found.experts_disagree_rate == 0.0
