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
from training.uncertainty.conformal import fit_uncertainty, mean, measure
from training.uncertainty.selective import Order, order_documents, row_losses, select


@dataclass(frozen=True, slots=True)
class Disputed:
    """Abstention in place of arbitration: test rows where experts differ, those the model commits itself on and the others."""

    num_kept: int
    num_abstained: int
    error_kept: float | None
    error_abstained: float | None
    orders: dict[str, Order]  # of these rows alone

    def document(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        figures = ("num_kept", "num_abstained", "error_kept", "error_abstained")
        return {**{name: getattr(self, name) for name in figures}, "selective": order_documents(self.orders)}


@dataclass(frozen=True, slots=True)
class Assessment:
    """The uncertainty of a run's model."""

    info: UncertaintyInfo
    orders: dict[str, Order]  # of the test rows
    arbitration: Arbitration | None  # None for a single expert, without classes, or where experts never differ
    disputed: Disputed | None  # None as there

    def document(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return {
            "conformal": self.info.model_dump(mode="json"),
            "selective": order_documents(self.orders),
            "arbitration": None if self.arbitration is None else self.arbitration.document(),
            "disputed": None if self.disputed is None else self.disputed.document(),
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
    arbitration = _arbitration(checkpoint, validation, test)
    disputed = None if arbitration is None else _disputed(checkpoint, info, test)
    return Assessment(info.model_copy(update={"measured": measured}), orders, arbitration, disputed)


def _arbitration(checkpoint: Checkpoint, validation: _Scored, test: _Scored) -> Arbitration | None:
    task, names = checkpoint.task, tuple(role.name for role in checkpoint.model.roles)
    if task.kind not in {"binary", "multiclass"} or len(names) == 1:
        return None
    chosen, told = (Rows.of(part.output.prediction, part.explanation, part.target, task) for part in (validation, test))
    num_bootstraps = checkpoint.recipe.train.num_bootstraps
    return arbitrate(chosen, told, names, task, num_rows=len(test.target), num_bootstraps=num_bootstraps)


def _disputed(checkpoint: Checkpoint, info: UncertaintyInfo, test: _Scored) -> Disputed:
    task, rows = checkpoint.task, disputed(test.explanation, checkpoint.task)
    output = test.output.rows(np.flatnonzero(rows))
    part = _scored(checkpoint, output, test.target[rows])
    abstain = assess(output.prediction, part.explanation, task, info).abstain
    loss = row_losses(output.prediction, part.target, task)
    return Disputed(
        num_kept=int((~abstain).sum()),
        num_abstained=int(abstain.sum()),
        error_kept=mean(loss[~abstain]),
        error_abstained=mean(loss[abstain]),
        orders=select(output, part.target, part.explanation, task, checkpoint.recipe.train.num_bootstraps),
    )
