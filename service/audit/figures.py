"""What predictions were worth, once their outcomes are known: discrimination, accuracy and calibration of probabilities."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.audit.entries import Judged


@dataclass(frozen=True, slots=True)
class Figures:
    """Of some predictions with outcomes; NaN where a figure is not defined."""

    count: int
    events: int
    auroc: float
    auroc_error: float  # its standard error
    brier: float
    calibration: float  # observed share of events less the mean stated probability: above 0, risks are stated too low


def figures(probability: ArrayLike, event: ArrayLike) -> Figures:
    """The figures of predictions with outcomes, of one model."""
    p, y = np.asarray(probability, np.float64), np.asarray(event, np.bool_)
    if not len(p):
        return Figures(0, 0, *[np.nan] * 4)
    return Figures(len(p), int(y.sum()), auroc(p, y), auroc_error(p, y), brier(p, y), calibration(p, y))


def figures_by_model(judged: Iterable[Judged]) -> dict[tuple[str, str], Figures]:
    """The figures of each model, by its name and version. Nine bytes of each prediction are held while they are read."""
    models: dict[tuple[str, str], tuple[array[float], array[int]]] = {}
    for name, version, probability, event in judged:
        probabilities, events = models.setdefault((name, version), (array("d"), array("b")))
        probabilities.append(probability)
        events.append(event)
    return {model: figures(*models[model]) for model in sorted(models)}


def auroc(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """The chance that an event was given a higher probability than a non-event, ties counting half; NaN without both.

    By ranks: (sum of the events' ranks - n1 (n1 + 1) / 2) / (n1 n0). Hanley and McNeil, Radiology 143 (1982) 29-36.
    """
    num_events = int(y.sum())
    num_others = len(y) - num_events
    if not num_events or not num_others:
        return float("nan")
    return float((_ranks(p)[y].sum() - num_events * (num_events + 1) / 2) / (num_events * num_others))


def auroc_error(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """The standard error of their AUROC, as if all were of different patients; NaN without two events and two others.

    sqrt(var(V1) / n1 + var(V0) / n0), where V1 are the shares of others below each event and V0 those of events above each other.
    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.
    """
    num_events = int(y.sum())
    num_others = len(y) - num_events
    if min(num_events, num_others) < 2:
        return float("nan")
    ranks = _ranks(p)
    below = (ranks[y] - _ranks(p[y])) / num_others
    above = 1 - (ranks[~y] - _ranks(p[~y])) / num_events
    return float(np.sqrt(below.var(ddof=1) / num_events + above.var(ddof=1) / num_others))


def _ranks(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; of ties the mean of the ranks that they share."""
    _, which, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


def brier(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Mean squared difference of probability and outcome: mean (p - y)^2. Brier, Monthly Weather Review 78 (1950) 1-3."""
    return float(np.mean((p - y) ** 2))


def calibration(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Calibration in the large: mean y - mean p, 0 where as many events happen as were foretold.

    The mean calibration of Van Calster et al., Journal of Clinical Epidemiology 74 (2016) 167-176, as a difference.
    """
    return float(y.mean() - p.mean())
