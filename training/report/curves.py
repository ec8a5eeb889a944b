"""What the ROC and calibration plots show, as numbers: one label against the rest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import TaskInfo
from training.evaluation import Evaluation
from training.tasks.metrics import ECE_BINS, true_labels

Floats = NDArray[np.floating]
MAX_CURVES = 7  # as many as a reader tells apart
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Versus:
    """One label against the rest: its stated probability (N,) and whether it is true (N,)."""

    label: str
    stated: Floats
    observed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Reliability:
    """For each bin that holds rows: mean stated probability, observed rate with its 95 % interval, and number of rows."""

    stated: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: NDArray[np.integer]


def one_vs_rest(evaluation: Evaluation, task: TaskInfo) -> list[Versus]:
    """The event of a binary task; else each label, of many the most frequent. One that is true in no row, or all, is left out."""
    prediction_NC, true_NC = evaluation.output.prediction, true_labels(evaluation.target, task)
    counts_C = true_NC.sum(axis=0)
    first = 1 if task.kind == "binary" else 0
    shown = sorted(np.argsort(-counts_C, kind="stable")[:MAX_CURVES].tolist())
    return [
        Versus(task.labels[c], prediction_NC[:, c], true_NC[:, c]) for c in shown if c >= first and 0 < counts_C[c] < len(true_NC)
    ]


def reliability(curve: Versus, num_bins: int = ECE_BINS) -> Reliability:
    """Equal-width bins of the stated probability, those of the expected calibration error."""
    bins_N = np.minimum((curve.stated * num_bins).astype(int), num_bins - 1)
    count = np.bincount(bins_N, minlength=num_bins)
    filled = count > 0
    count = count[filled]
    stated = np.bincount(bins_N, weights=curve.stated, minlength=num_bins)[filled] / count
    observed = np.bincount(bins_N, weights=curve.observed, minlength=num_bins)[filled] / count
    low, high = _wilson(observed, count)
    return Reliability(stated, observed, low, high, count)


def _wilson(rate: Floats, count: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Wilson's (1927) interval of a rate; it stays within 0 and 1 and holds for few rows."""
    shrink = 1 + _Z**2 / count
    centre = (rate + _Z**2 / (2 * count)) / shrink
    half = _Z / shrink * np.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2))
    return np.minimum(centre - half, rate), np.maximum(centre + half, rate)
