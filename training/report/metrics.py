"""The metrics in words, and the rows of their table."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.bundle.manifest import MetricValue
from training.tasks import LOWER_IS_BETTER
from training.tasks.metrics import ECE_BINS

_TITLES = {"log_loss": "log loss", "accuracy": "accuracy", "brier": "Brier score", "ece_debiased": "ECE, debiased"}
_MEANINGS = {
    "auroc": "how well the ranking separates the classes; 0.5 is chance",
    "auprc": "average precision; chance is the share of the class",
    "brier": "mean squared error of the probabilities",
    "ece": f"mean gap of stated probability and observed rate in {ECE_BINS} bins; chance adds to it",
    "ece_debiased": "the same, less what chance adds",
    "accuracy": "share of rows with the right label",
    "f1": "balance of precision and recall",
    "log_loss": "mean negative log probability of the true label",
    "mae": "mean absolute error",
    "rmse": "root of the mean squared error",
    "r2": "share of the variance explained",
}
_HEADLINE, _NUM_HEADLINES = ("auroc", "auprc", "ece", "log_loss"), 4


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric over both sets of rows."""

    name: str
    title: str
    meaning: str
    better: str
    test: MetricValue
    validation: MetricValue


def metric_title(metric: str) -> str:
    """A metric's name for a person."""
    return _TITLES.get(metric, metric.upper().replace("_", " "))


def metric_rows(test: Mapping[str, MetricValue], validation: Mapping[str, MetricValue]) -> tuple[MetricRow, ...]:
    """Every metric of `test`, with its value on the validation rows."""
    return tuple(
        MetricRow(
            name=name,
            title=metric_title(name),
            meaning=_MEANINGS.get(name, ""),
            better="lower" if name in LOWER_IS_BETTER else "higher",
            test=value,
            validation=validation[name],
        )
        for name, value in test.items()
    )


def headline(rows: tuple[MetricRow, ...]) -> tuple[MetricRow, ...]:
    """The four that stand at the top of the page."""
    return tuple(sorted(rows, key=lambda row: row.name not in _HEADLINE)[:_NUM_HEADLINES])
