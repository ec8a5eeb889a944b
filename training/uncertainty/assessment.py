"""Everything a run says about its uncertainty, from its evaluated rows: for metrics.json, the report and the manifest."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, explain
from service.bundle.manifest import UncertaintyInfo
from service.bundle.output import Output
from service.bundle.uncertainty import assess
from training.checkpoint import Checkpoint
from training.data.dataset import Dataset
from training.data.split import CONFORMAL
from training.evaluation import Evaluation, calibration_info
from training.inference import predict
from training.uncertainty.arbitration import Arbitration, Rows, arbitrate, disputed
from training.uncertainty.conformal import fit_uncertainty, measure
from training.uncertainty.selective import Order, order_documents, row_losses, select


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows that the model commits itself on, and rows it abstains on."""

    num_kept: int
    num_abstained: int
    error_kept: float | None
    error_abstained: float | None


@dataclass(frozen=True, slots=True)
class Assessment:
    """The uncertainty of a run's model."""

    info: UncertaintyInfo
    orders: dict[str, Order]  # of the test rows
    arbitration: Arbitration | None  # None for a single expert, without classes, or where experts never differ
    disputed: Kept | None  # test rows where experts differ: abstention instead of arbitration

    def document(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        disputed = None if self.disputed is None else {name: getattr(self.disputed, name) for name in Kept.__slots__}
        return {
            "conformal": self.info.model_dump(mode="json"),
            "selective": order_documents(self.orders),
            "arbitration": None if self.arbitration is None else self.arbitration.document(),
            "disputed": disputed,
        }


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows with the model's outputs, explained."""

    output: Output
    target: NDArray[Any]
    explanation: Explanation


def assess_run(checkpoint: Checkpoint, dataset: Dataset, evaluations: dict[str, Evaluation]) -> Assessment:
    """Fit on the conformal rows, or for want of them on the validation rows; choose on validation rows; measure on test rows.

    `evaluations` holds "validation" and "test".
    """
    validation, test = (
        _scored(checkpoint, evaluations[name].output, evaluations[name].target) for name in ("validation", "test")
    )
    exact = CONFORMAL in dataset.splits
    held_out = _predicted(checkpoint, dataset) if exact else validation
    info = fit_uncertainty(
        held_out.output.prediction,
        held_out.target,
        held_out.explanation,
        task=checkpoint.task,
        config=checkpoint.recipe.uncertainty,
        guarantee="exact" if exact else "approximate",
    )
    return assess_rows(checkpoint, info, validation, test)


def _scored(checkpoint: Checkpoint, output: Output, target: NDArray[Any]) -> _Scored:
    return _Scored(output, target, explain(output, checkpoint.task, calibration_info(checkpoint)))


def _predicted(checkpoint: Checkpoint, dataset: Dataset) -> _Scored:
    arrays, target = dataset.part(CONFORMAL)
    output = predict(checkpoint.model, checkpoint.schema, arrays, workers=checkpoint.recipe.train.workers)
    return _scored(checkpoint, output, target)


def assess_rows(checkpoint: Checkpoint, info: UncertaintyInfo, validation: _Scored, test: _Scored) -> Assessment:
    """What thresholds, orders and arbiters are worth on the test rows."""
    task, num_bootstraps = checkpoint.task, checkpoint.recipe.train.num_bootstraps
    orders = select(test.output, test.target, test.explanation, task, num_bootstraps)
    found = measure(test.output.prediction, test.target, test.explanation, task=task, info=info, split="test")
    measured = found.model_copy(update={"aurc": {name: order.aurc for name, order in orders.items()}})
    compared = task.kind in {"binary", "multiclass"} and len(checkpoint.model.roles) > 1
    arbitration = None
    if compared:
        chosen, told = (Rows.of(part.output.prediction, part.explanation, part.target, task) for part in (validation, test))
        names = tuple(role.name for role in checkpoint.model.roles)
        arbitration = arbitrate(chosen, told, names, task, num_rows=len(test.target), num_bootstraps=num_bootstraps)
    info = info.model_copy(update={"measured": measured})
    return Assessment(info, orders, arbitration, _kept_of_disputed(checkpoint, info, test) if compared else None)


def _kept_of_disputed(checkpoint: Checkpoint, info: UncertaintyInfo, test: _Scored) -> Kept:
    rows = disputed(test.explanation, checkpoint.task)
    abstain = assess(test.output.prediction, test.explanation, checkpoint.task, info).abstain[rows]
    loss = row_losses(test.output.prediction, test.target, checkpoint.task)[rows]
    errors = [float(np.mean(part)) if len(part) else None for part in (loss[~abstain], loss[abstain])]
    return Kept(int((~abstain).sum()), int(abstain.sum()), *errors)
