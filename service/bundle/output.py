"""The four arrays that every forward pass answers, whether a graph or a trained model computed them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTPUT_NAMES = ("prediction", "logits", "expert_weights", "expert_logits")


@dataclass(frozen=True, slots=True)
class Output:
    """What the model answers for B records, E experts and C labels, as float32 arrays.

    Identity: sum over experts of expert_weights x expert_logits = logits. `prediction` is calibrated, `logits` are not.
    """

    prediction: NDArray[np.float32]  # (B, C)
    logits: NDArray[np.float32]  # (B, C)
    expert_weights: NDArray[np.float32]  # (B, E)
    expert_logits: NDArray[np.float32]  # (B, E, C)

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """All four, in the order of `OUTPUT_NAMES`."""
        return self.prediction, self.logits, self.expert_weights, self.expert_logits

    def rows(self, rows: slice | NDArray[np.intp]) -> "Output":
        """The output of some of the records."""
        return Output(self.prediction[rows], self.logits[rows], self.expert_weights[rows], self.expert_logits[rows])

    @classmethod
    def join(cls, parts: Sequence["Output"]) -> "Output":
        """The outputs of several batches, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUT_NAMES))
