"""Tasks: one object per kind of label owns its loss, its metrics and which run is better."""

from collections.abc import Mapping

from service.bundle.manifest import TaskInfo, TaskKind
from training.tasks.base import LOWER_IS_BETTER, Task, is_better
from training.tasks.classification import Classification
from training.tasks.multilabel import Multilabel
from training.tasks.regression import Regression

TASKS: Mapping[TaskKind, type[Task]] = {
    "binary": Classification,
    "multiclass": Classification,
    "multilabel": Multilabel,
    "regression": Regression,
}

__all__ = ["LOWER_IS_BETTER", "TASKS", "Classification", "Multilabel", "Regression", "Task", "is_better", "make_task"]


def make_task(info: TaskInfo) -> Task:
    """The task that a manifest's or dataset's description means."""
    return TASKS[info.kind](info)
