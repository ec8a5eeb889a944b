"""What a prediction is worth: one Task per kind of label owns its metrics and which run is better."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf
from sklearn import metrics as sk

from service.bundle.explanation import decide
from service.bundle.manifest import MetricValue, TaskInfo

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Float64s = NDArray[np.float64]
Metric = Callable[[Floats, Ints, TaskInfo], float]  # (prediction (N, C), target (N,), task)

ECE_BINS = 15
_EPS = 1e-7
_MAX_DRAWS = 100  # per resample, before classes are found too rare for intervals


def log_loss(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """Mean negative log probability of the true class."""
    true_class_N = np.take_along_axis(prediction_NC, target_N[:, None], axis=1)[:, 0]
    return float(-np.log(np.clip(true_class_N, _EPS, 1)).mean())


def auroc(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """Area under the ROC curve; one-vs-rest macro average for more than two classes."""
    if prediction_NC.shape[1] == 2:
        return float(sk.roc_auc_score(target_N, prediction_NC[:, 1]))
    one_hot_NC = np.eye(prediction_NC.shape[1], dtype=int)[target_N]
    return float(sk.roc_auc_score(one_hot_NC, prediction_NC, average="macro"))


def auprc(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """Average precision; macro average over classes for more than two."""
    if prediction_NC.shape[1] == 2:
        return float(sk.average_precision_score(target_N, prediction_NC[:, 1]))
    one_hot_NC = np.eye(prediction_NC.shape[1], dtype=int)[target_N]
    return float(sk.average_precision_score(one_hot_NC, prediction_NC, average="macro"))


def brier(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """Mean squared error of the event's probability; for more than two classes, summed over classes (Brier 1950)."""
    one_hot_NC = np.eye(prediction_NC.shape[1])[target_N]
    squared_N = ((prediction_NC - one_hot_NC) ** 2).sum(axis=1)
    return float(squared_N.mean() / (2 if prediction_NC.shape[1] == 2 else 1))


def _stated_and_observed(prediction_NC: Floats, target_N: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """Binary: the event's probability and the event. Otherwise: the largest probability and being right."""
    if prediction_NC.shape[1] == 2:
        stated_N, observed_N = prediction_NC[:, 1], target_N == 1
    else:
        stated_N, observed_N = prediction_NC.max(axis=1), prediction_NC.argmax(axis=1) == target_N
    return stated_N, observed_N


def _bin_sums(prediction_NC: Floats, target_N: Ints) -> tuple[Float64s, Float64s, Float64s]:
    """Rows, summed (stated - observed) and summed observed in each of the 15 equal-width bins of the stated probability."""
    stated_N, observed_N = _stated_and_observed(prediction_NC, target_N)
    bins_N = np.minimum((stated_N * ECE_BINS).astype(int), ECE_BINS - 1)

    def summed(values_N: Floats) -> Float64s:
        return np.bincount(bins_N, weights=values_N, minlength=ECE_BINS).astype(np.float64)

    return summed(np.ones(len(bins_N))), summed(stated_N - observed_N), summed(observed_N.astype(np.float64))


def expected_calibration_error(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """Mean |stated - observed| over 15 equal-width bins of the stated probability, weighted by bin size (Guo et al. 2017).

    Biased upwards: chance alone gives a perfectly calibrated model about 0.03 on 1,400 rows.
    """
    _, gaps, _ = _bin_sums(prediction_NC, target_N)
    return float(np.abs(gaps).sum() / len(target_N))


def debiased_calibration_error(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """The expected calibration error less what chance adds to it, never below 0.

    With a bin's gap g and its standard error s = sqrt(o (1 - o) / n), chance turns |g| into the mean of a folded normal,
    E|N(g, s^2)| = s sqrt(2 / pi) exp(-g^2 / 2 s^2) + |g| erf(|g| / s sqrt(2)); the excess over |g| is taken off (the
    normal debiasing of Kumar, Liang and Ma, "Verified uncertainty calibration", NeurIPS 2019, in closed form).
    """
    counts, gaps, observed = _bin_sums(prediction_NC, target_N)
    filled = counts > 0
    gap, rate = np.abs(gaps[filled]) / counts[filled], observed[filled] / counts[filled]
    error = np.sqrt(np.maximum(rate * (1 - rate), _EPS) / counts[filled])
    folded = error * np.sqrt(2 / np.pi) * np.exp(-((gap / error) ** 2) / 2) + gap * erf(gap / error / np.sqrt(2))
    return max(0.0, float((counts[filled] * (2 * gap - folded)).sum() / len(target_N)))


def accuracy(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """Share of rows whose decided label is the true one."""
    return float((decide(prediction_NC, task) == target_N).mean())


def f1(prediction_NC: Floats, target_N: Ints, task: TaskInfo) -> float:
    """F1 of the event for two classes, macro F1 for more."""
    average = "binary" if prediction_NC.shape[1] == 2 else "macro"
    return float(sk.f1_score(target_N, decide(prediction_NC, task), average=average, zero_division=0.0))


METRICS: Mapping[str, Metric] = {
    "auroc": auroc,
    "auprc": auprc,
    "brier": brier,
    "ece": expected_calibration_error,
    "ece_debiased": debiased_calibration_error,
    "accuracy": accuracy,
    "f1": f1,
    "log_loss": log_loss,
}
LOWER_IS_BETTER = frozenset({"brier", "ece", "ece_debiased", "log_loss"})


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Does `value` of `metric` beat the best so far? NaN never does."""
    if best is None:
        return not np.isnan(value)
    return value < best if metric in LOWER_IS_BETTER else value > best


def evaluate(
    prediction_NC: Floats, target_N: Ints, task: TaskInfo, *, num_bootstraps: int, seed: int = 0
) -> dict[str, MetricValue]:
    """Every metric with its 95 % bootstrap interval over rows.

    Intervals are the bootstrap's quantiles moved so that its mean is the value itself: resampling biases some metrics
    (calibration errors most), and the quantiles alone would then miss the value. Resamples that lack a class are drawn
    again, so every metric is defined on each; no intervals are given where hardly any resample holds every class.
    """
    resamples = _resamples(target_N, num_bootstraps, seed)
    return {name: _with_interval(name, prediction_NC, target_N, task, resamples) for name in METRICS}


def _resamples(target_N: Ints, count: int, seed: int) -> list[NDArray[np.intp]]:
    generator, num_classes = np.random.default_rng(seed), len(np.unique(target_N))
    resamples: list[NDArray[np.intp]] = []
    for _ in range(count * _MAX_DRAWS):
        if len(resamples) == count:
            return resamples
        rows = generator.integers(len(target_N), size=len(target_N))
        if len(np.unique(target_N[rows])) == num_classes:
            resamples.append(rows)
    return []


def _with_interval(
    name: str, prediction_NC: Floats, target_N: Ints, task: TaskInfo, resamples: list[NDArray[np.intp]]
) -> MetricValue:
    metric = METRICS[name]
    value = metric(prediction_NC, target_N, task)
    if not resamples:
        return MetricValue(value=value)
    drawn = np.array([metric(prediction_NC[rows], target_N[rows], task) for rows in resamples])
    low, high = np.quantile(drawn, [0.025, 0.975]) + value - drawn.mean()
    return MetricValue(value=value, low=max(0.0, float(low)), high=min(_largest(name, task), float(high)))


def _largest(name: str, task: TaskInfo) -> float:
    """The largest value a metric can have."""
    if name == "log_loss":
        return np.inf
    return 2.0 if name == "brier" and len(task.labels) > 2 else 1.0
