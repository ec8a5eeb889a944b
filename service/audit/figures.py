"""What predictions were worth, once their outcomes are known: discrimination, accuracy and calibration of probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.audit.entries import Judged


@dataclass(frozen=True, slots=True)
class Figures:
    """Of some predictions with outcomes; NaN where a figure is not defined."""

    count: int
    events: int
    auroc: float
    brier: float
    calibration: float  # observed share of events less the mean stated probability: above 0, risks are stated too low


def figures(judged: Sequence[Judged]) -> Figures:
    """The figures of predictions with outcomes, of one model."""
    p = np.array([one.probability for one in judged], dtype=np.float64)
    y = np.array([one.event for one in judged], dtype=bool)
    if not len(p):
        return Figures(0, 0, np.nan, np.nan, np.nan)
    return Figures(len(p), int(y.sum()), auroc(p, y), brier(p, y), calibration(p, y))


def figures_by_model(judged: Sequence[Judged]) -> dict[tuple[str, str], Figures]:
    """The figures of each model, by its name and version."""
    models: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        models.setdefault((one.model_name, one.model_version), []).append(one)
    return {model: figures(models[model]) for model in sorted(models)}


def auroc(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """The chance that an event was given a higher probability than a non-event, ties counting half; NaN without both.

    By ranks: (sum of the events' ranks - n1 (n1 + 1) / 2) / (n1 n0). Hanley and McNeil, Radiology 143 (1982) 29-36.
    """
    num_events = int(y.sum())
    num_others = len(y) - num_events
    if not num_events or not num_others:
        return float("nan")
    _, which, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # of ties the mean of the ranks that they share
    return float((ranks[y].sum() - num_events * (num_events + 1) / 2) / (num_events * num_others))


def brier(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Mean squared difference of probability and outcome: mean (p - y)^2. Brier, Monthly Weather Review 78 (1950) 1-3."""
    return float(np.mean((p - y) ** 2))


def calibration(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Calibration in the large: mean y - mean p, 0 where as many events happen as were foretold.

    The mean calibration of Van Calster et al., Journal of Clinical Epidemiology 74 (2016) 167-176, as a difference.
    """
    return float(y.mean() - p.mean())
