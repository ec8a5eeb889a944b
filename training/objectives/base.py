"""What the trainer asks of an objective: the losses of a batch, and how good a model is on validation rows.

Shape suffixes: B batch, N rows of a step, C outputs, E experts.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from training.data.dataset import Dataset
from training.tasks import Task

Model = TypeVar("Model", bound=nn.Module)


class Shares(NamedTuple):
    """What a micro-batch counts for in its optimiser step: losses times these add up to the losses of the whole batch."""

    rows: float = 1.0  # of the batch's rows
    task: Tensor | float = 1.0  # of its task loss: of rows, or of what their classes weigh


ALL, NOTHING = Shares(), Shares(0.0, 0.0)


class Losses(NamedTuple):
    """The losses of a batch, or a micro-batch's shares of them; `total` is what is minimised."""

    total: Tensor  # ()
    task: Tensor  # ()
    interaction_E: Tensor  # (E,), one for each of `Objective.loss_names`, or (0,) when nothing of the kind was computed


class TaskLoss(nn.Module):
    """A task's loss with its class weights and smoothing, on logits counted from a base rate: 0 means the base rate.

    L = L_task(logits + base_rate, target). Without a base rate logits are taken as they are.
    """

    class_weights_C: Tensor | None
    base_rate_C: Tensor | None

    def __init__(
        self,
        task: Task,
        *,
        class_weights_C: Tensor | None = None,
        base_rate_C: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.task, self.label_smoothing = task, label_smoothing
        self.register_buffer("class_weights_C", class_weights_C)
        self.register_buffer("base_rate_C", base_rate_C)

    def forward(self, logits_BC: Tensor, target_B: Tensor) -> Tensor:
        """The mean loss () of a batch."""
        scores_BC = logits_BC if self.base_rate_C is None else logits_BC + self.base_rate_C
        return self.task.loss(scores_BC, target_B, class_weights_C=self.class_weights_C, label_smoothing=self.label_smoothing)

    def shares(self, target_B: Tensor, whole_N: Tensor) -> Shares:
        """What rows with the targets `target_B` count for among those of a step, `whole_N`."""
        part, whole = (self.task.loss_weight(target, self.class_weights_C) for target in (target_B, whole_N))
        return Shares(len(target_B) / len(whole_N), part / whole)

    def of_evidence(self, target_N: NDArray[Any]) -> "TaskLoss":
        """The same on logits counted from the base rate of training targets (N,)."""
        return TaskLoss(
            self.task,
            class_weights_C=self.class_weights_C,
            base_rate_C=self.task.base_rate(target_N, self.class_weights_C),
            label_smoothing=self.label_smoothing,
        )

    def unsmoothed(self) -> "TaskLoss":
        """The same without label smoothing."""
        return TaskLoss(self.task, class_weights_C=self.class_weights_C, base_rate_C=self.base_rate_C)


class Objective(nn.Module, Generic[Model], ABC):
    """What one run of the trainer is for. Frozen teachers are submodules, so that they follow it to its device.

    `forward(model, inputs, target_B, shares)` answers the `Losses` of one batch: `inputs` holds one (B, columns) tensor per
    modality.
    """

    selection: str  # the validation figure that chooses the epoch; lower is better unless `is_better` says otherwise

    @abstractmethod
    def validate(self, model: Model, dataset: Dataset, *, workers: int) -> dict[str, float]:
        """Figures of the validation rows, `selection` among them. Raises `FloatingPointError` when they are not numbers."""

    def is_better(self, value: float, best: float | None) -> bool:
        """Does a value of `selection` beat the best so far?"""
        return not np.isnan(value) and (best is None or value < best)

    def shares(self, target_B: Tensor, whole_N: Tensor) -> Shares:
        """What rows with the targets `target_B` count for among those of a step, `whole_N`."""
        share = len(target_B) / len(whole_N)
        return Shares(share, share)

    def model_target(self, model: Model, target_N: Tensor) -> Tensor:
        """Targets in the unit in which the model is trained."""
        del model
        return target_N

    def loss_names(self, model: Model) -> Sequence[str]:
        """What `Losses.interaction_E` stands for, in its order."""
        del model
        return ()


class LossModule(nn.Module):
    """An objective over a model as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, objective: Objective[Any], model: nn.Module) -> None:
        super().__init__()
        self.objective, self.model = objective, model

    def forward(self, inputs: list[Tensor], target_B: Tensor, shares: Shares) -> Losses:
        """As the objective's."""
        return self.objective(self.model, inputs, target_B, shares)


def check_finite(values: ArrayLike) -> None:
    """Raises `FloatingPointError` where a figure of a model is not a number."""
    if not np.isfinite(values).all():
        raise FloatingPointError("the model answers NaN")
