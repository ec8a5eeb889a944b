"""A task: what one kind of label means for training and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.manifest import MetricValue, TaskInfo
from training.errors import RecipeError
from training.tasks.metrics import Floats

_MAX_DRAWS = 100  # per resample, before the target is found too rare for intervals
LOWER_IS_BETTER = frozenset({"brier", "ece", "ece_debiased", "log_loss", "mae", "rmse"})
SMALLEST_WEIGHT = 1e-6  # of a class, where its logarithm is taken
_UNBOUNDED = frozenset({"log_loss", "mae", "rmse"})


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Does `value` of `metric` beat the best so far? NaN never does."""
    if best is None:
        return not np.isnan(value)
    return value < best if metric in LOWER_IS_BETTER else value > best


class Task(ABC):
    """Loss, metrics and selection for one kind of label. Subclasses are one kind each."""

    metrics: ClassVar[Mapping[str, Any]]  # name -> training.tasks.metrics.Metric
    default_selection: ClassVar[str]  # the validation metric that chooses the epoch

    def __init__(self, info: TaskInfo) -> None:
        self.info = info

    @abstractmethod
    def loss(self, logits_BC: Tensor, target_B: Tensor, *, class_weights_C: Tensor | None, label_smoothing: float) -> Tensor:
        """The mean task loss () of a batch."""

    def loss_weight(self, target_B: Tensor, class_weights_C: Tensor | None) -> Tensor | float:
        """What a batch counts for beside others: the mean of a whole is that of its parts, weighted by this. Rows."""
        del class_weights_C
        return float(len(target_B))

    @abstractmethod
    def covers(self, target_N: NDArray[Any]) -> bool:
        """Whether every metric is defined on these targets."""

    @abstractmethod
    def balanced_weights(self, target_N: NDArray[Any]) -> Tensor:
        """Class weights (C,) by inverse training frequency. Raises `RecipeError` where there are no classes."""

    @abstractmethod
    def base_rate(self, target_N: NDArray[Any], class_weights_C: Tensor | None) -> Tensor:
        """Logits (C,) that say what is known of nobody in particular: 0 in sum where there are classes."""

    def selection(self, wanted: str | None) -> str:
        """The validation metric that chooses the epoch. Raises `RecipeError` when the task has no such metric."""
        if wanted is not None and wanted not in self.metrics:
            expected = ", ".join(self.metrics)
            raise RecipeError(f"train.selection: expected a metric of {self.info.kind} tasks ({expected}), found {wanted!r}")
        return wanted or self.default_selection

    def measure(self, prediction_NC: Floats, target_N: NDArray[Any]) -> dict[str, float]:
        """Every metric."""
        return {name: metric(prediction_NC, target_N, self.info) for name, metric in self.metrics.items()}

    def evaluate(
        self, prediction_NC: Floats, target_N: NDArray[Any], *, num_bootstraps: int, seed: int = 0
    ) -> dict[str, MetricValue]:
        """Every metric with its 95 % bootstrap interval over rows.

        Intervals are the bootstrap's quantiles moved so that its mean is the value itself: resampling biases some
        metrics (calibration errors most), and the quantiles alone would then miss the value. Resamples on which a metric
        is undefined are drawn again; no intervals are given where hardly any resample would do.
        """
        resamples = self._resamples(target_N, num_bootstraps, seed)
        return {name: self._with_interval(name, prediction_NC, target_N, resamples) for name in self.metrics}

    def _resamples(self, target_N: NDArray[Any], count: int, seed: int) -> list[NDArray[np.intp]]:
        generator = np.random.default_rng(seed)
        resamples: list[NDArray[np.intp]] = []
        for _ in range(count * _MAX_DRAWS):
            if len(resamples) == count:
                return resamples
            rows = generator.integers(len(target_N), size=len(target_N))
            if self.covers(target_N[rows]):
                resamples.append(rows)
        return []

    def _with_interval(
        self, name: str, prediction_NC: Floats, target_N: NDArray[Any], resamples: list[NDArray[np.intp]]
    ) -> MetricValue:
        metric = self.metrics[name]
        value = metric(prediction_NC, target_N, self.info)
        if not resamples:
            return MetricValue(value=value)
        drawn = np.array([metric(prediction_NC[rows], target_N[rows], self.info) for rows in resamples])
        low, high = np.quantile(drawn, [0.025, 0.975]) + value - drawn.mean()
        smallest, largest = self.metric_range(name)
        return MetricValue(value=value, low=max(smallest, float(low)), high=min(largest, float(high)))

    def metric_range(self, name: str) -> tuple[float, float]:
        """The smallest and largest value a metric can have."""
        smallest = {"r2": -np.inf, "correlation": -1.0}.get(name, 0.0)
        return smallest, np.inf if name in _UNBOUNDED else 1.0


_HALF_A_ROW = 0.5  # what a class that no training row has counts, so that its base rate is finite


def log_counts(counts_C: NDArray[Any]) -> Tensor:
    """The logarithms of numbers of rows."""
    return torch.tensor(np.log(np.maximum(counts_C, _HALF_A_ROW)), dtype=torch.float32)


def no_weights(kind: str) -> RecipeError:
    """The error for class weights where there are no classes."""
    return RecipeError(f"objective.class_weights: {kind} tasks have no classes to weigh")


def frequencies_to_weights(counts_C: NDArray[Any], num_rows: int) -> Tensor:
    """Inverse frequencies with mean 1 over rows."""
    return torch.tensor(num_rows / (len(counts_C) * np.maximum(counts_C, 1)), dtype=torch.float32)
