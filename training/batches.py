"""Which rows go through the model together: an epoch's steps, cut into every process's micro-batches."""

from typing import NamedTuple

from torch import Tensor

from training import distributed


class MicroBatch(NamedTuple):
    """Rows of one forward and backward pass, and those of the whole optimiser step, all processes' together."""

    rows: Tensor  # (B,)
    step_rows: Tensor  # (N,)
    counts: bool  # false for a row that stands in where a process has none of its own, at weight 0


def micro_batches(step_rows: Tensor, num_pieces: int) -> list[MicroBatch]:
    """This process's part of a step's rows, cut into at most `num_pieces`.

    All processes must take part in every step, so one without rows goes through the step's first row for nothing.
    """
    own = step_rows.tensor_split(distributed.num_processes())[distributed.rank()]
    if len(own) == 0:
        return [MicroBatch(step_rows[:1], step_rows, counts=False)]
    return [MicroBatch(rows, step_rows, counts=True) for rows in own.tensor_split(num_pieces) if len(rows)]
