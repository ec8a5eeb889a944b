"""What a prediction is worth, figure by figure.

A metric takes predictions (N, C), targets and the task. Targets are class positions (N,) for binary and multiclass, 0/1
per label (N, C) for multilabel, values (N,) for regression.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf
from sklearn import metrics as sk

from service.bundle.explanation import decide
from service.bundle.manifest import TaskInfo

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Float64s = NDArray[np.float64]
Target = NDArray[np.int64] | NDArray[np.float32]
Metric = Callable[[Floats, NDArray[np.int64], TaskInfo], float] | Callable[[Floats, NDArray[np.float32], TaskInfo], float]

ECE_BINS = 15
_EPS = 1e-7
LABEL_THRESHOLD = 0.5  # multilabel: from which calibrated probability a label is predicted


def true_labels(target: NDArray[Any], task: TaskInfo) -> NDArray[np.bool_]:
    """Which labels are true in which row (N, C); `target` holds positions (N,), for multilabel tasks 0/1 (N, C)."""
    return target == 1 if task.kind == "multilabel" else target[:, None] == np.arange(len(task.labels))


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


def _labels_with_both(target_NC: Floats) -> NDArray[np.intp]:
    """Labels that some rows have and some have not: ranking metrics are undefined for the others."""
    return np.flatnonzero((target_NC == 1).any(axis=0) & (target_NC == 0).any(axis=0))


def multilabel_auroc(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """Area under the ROC curve, mean over the labels that some rows have and some have not."""
    labels = _labels_with_both(target_NC)
    return float(sk.roc_auc_score(target_NC[:, labels], prediction_NC[:, labels], average="macro"))


def multilabel_auprc(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """Average precision, mean over the labels that some rows have and some have not."""
    labels = _labels_with_both(target_NC)
    return float(sk.average_precision_score(target_NC[:, labels], prediction_NC[:, labels], average="macro"))


def micro_f1(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """F1 over all labels of all rows together, labels decided at probability 0.5."""
    return float(sk.f1_score(target_NC == 1, prediction_NC >= LABEL_THRESHOLD, average="micro", zero_division=0.0))


def macro_f1(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """F1 per label, then the mean, labels decided at probability 0.5."""
    return float(sk.f1_score(target_NC == 1, prediction_NC >= LABEL_THRESHOLD, average="macro", zero_division=0.0))


def exact_match(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """Share of rows whose labels are all right (what the paper calls accuracy on MM-IMDB)."""
    return float(((prediction_NC >= LABEL_THRESHOLD) == (target_NC == 1)).all(axis=1).mean())


def multilabel_brier(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """Mean squared error of the probabilities over all rows and labels."""
    return float(((prediction_NC - target_NC) ** 2).mean())


def multilabel_log_loss(prediction_NC: Floats, target_NC: Floats, task: TaskInfo) -> float:
    """Mean negative log probability of what was so, over all rows and labels."""
    probability_NC = np.clip(np.where(target_NC == 1, prediction_NC, 1 - prediction_NC), _EPS, 1)
    return float(-np.log(probability_NC).mean())


def mae(prediction_N1: Floats, target_N: Floats, task: TaskInfo) -> float:
    """Mean absolute error, in the target's unit."""
    return float(np.abs(prediction_N1[:, 0] - target_N).mean())


def rmse(prediction_N1: Floats, target_N: Floats, task: TaskInfo) -> float:
    """Root of the mean squared error, in the target's unit."""
    return float(np.sqrt(((prediction_N1[:, 0] - target_N) ** 2).mean()))


def r2(prediction_N1: Floats, target_N: Floats, task: TaskInfo) -> float:
    """Share of the target's variance that is explained; negative for a model worse than the mean."""
    return float(sk.r2_score(target_N, prediction_N1[:, 0]))


def correlation(prediction_N1: Floats, target_N: Floats, task: TaskInfo) -> float:
    """Pearson correlation of predictions and targets; 0 where the predictions are constant."""
    if prediction_N1[:, 0].std() < _EPS or target_N.std() < _EPS:
        return 0.0
    return float(np.corrcoef(prediction_N1[:, 0], target_N)[0, 1])


def sign_accuracy(prediction_N1: Floats, target_N: Floats, task: TaskInfo) -> float:
    """Share of rows on the right side of zero (the two-class accuracy reported for CMU-MOSI)."""
    return float(((prediction_N1[:, 0] > 0) == (target_N > 0)).mean())
