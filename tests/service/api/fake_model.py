"""A model for the batcher whose answer to x is x, that can be held up and fails on demand."""

import threading

import numpy as np

from service.api.batches import Arrays
from service.bundle.output import Output

FAILS = -1.0  # a sample that fails every batch it is in


def column(*values: float) -> Arrays:
    """Samples of one number each."""
    return {"x": np.array(values, np.float32)[:, None]}


class FakeModel:
    """Records its batches, and which of them were wanted in full. While it is `held`, it computes nothing."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.in_full: list[bool] = []
        self.started = threading.Event()
        self._may_go = threading.Event()
        self._may_go.set()

    def hold(self) -> None:
        """Stop in the next batch until `release`."""
        self.started.clear()
        self._may_go.clear()

    def release(self) -> None:
        """Go on."""
        self._may_go.set()

    def run(self, arrays: Arrays, *, in_full: bool) -> Output:
        """The batch as its own answer."""
        x = arrays["x"]
        self.batches.append(x[:, 0].tolist())
        self.in_full.append(in_full)
        self.started.set()
        assert self._may_go.wait(10)
        if (x == FAILS).any():
            raise ValueError(f"cannot score {x}")
        return Output(x, x, np.ones_like(x), x[:, :, None])
