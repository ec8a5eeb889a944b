"""What methods of attribution share: the baseline, the answer, and the contribution that is attributed.

A record is followed from a baseline, at which nothing is known of it, to what it is; every column has a share in [0, 1] of
how far it is known (`Encoder.encode_partly`). Shape suffixes: E experts, B batch, F columns, C outputs.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from service.bundle.manifest import TaskInfo

BASELINE = (
    "nothing known of the record: numbers and categories missing, no code, no word, arrays and embedded texts at the mean of the "
    "training rows (0 where an encoder reads columns as they are)"
)


class AttributionOutput(NamedTuple):
    """base + sum over all modalities' columns of columns + gap = contribution, for every record and expert."""

    columns: tuple[Tensor, ...]  # one (B, E, F) per modality; 0 for what is missing
    base_BE: Tensor  # the contribution when nothing is known
    contribution_BE: Tensor  # the contribution of the record as it is
    gap_BE: Tensor  # what the columns lack of the difference


class Attribution(nn.Module, ABC):
    """A method on a model, as a module of one positional tensor per modality and a label."""

    method: ClassVar[str]
    num_points: int  # states between baseline and record at which the model is asked, of one record
    num_rows: int  # rows of the model that one record becomes

    @abstractmethod
    def forward(self, *inputs: Tensor) -> AttributionOutput:
        """Modalities (B, F) with NaN where missing, then label (B, C), one-hot: towards which label."""


def towards(logits_EBC: Tensor, label_BC: Tensor, task: TaskInfo) -> Tensor:
    """How far logits speak for the label (E, B): without the weight, the contributions of `service.bundle.explanation`."""
    chosen_EB = (logits_EBC * label_BC).sum(dim=2)
    if task.kind == "regression":
        return chosen_EB - (task.training_mean or 0.0)
    if task.kind == "multilabel":
        return chosen_EB
    return chosen_EB - (logits_EBC.sum(dim=2) - chosen_EB) / (logits_EBC.shape[2] - 1)
