"""Which rows go through the model together, and how they get there: from memory, or from files when their turn comes."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training import distributed
from training.data.rows import LazyRows, RowArray
from training.model.rows import StreamedRows, TrainingRows


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


class _Reader(Dataset[list[Tensor]]):
    """Lazy arrays as a data set of torch whose indices are the rows of a whole batch."""

    def __init__(self, arrays: Sequence[LazyRows]) -> None:
        self.arrays = arrays

    def __getitem__(self, rows: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array[rows.numpy()]) for array in self.arrays]


class Batches:
    """Batches of row-aligned arrays: those in memory lie on the device, lazy rows are read batch by batch.

    `workers` processes read lazy rows ahead, two batches each; with 0 they are read when they are needed.
    """

    def __init__(self, arrays: Sequence[RowArray], device: torch.device, *, workers: int) -> None:
        self.device, self.workers = device, workers
        self.arrays = [array if isinstance(array, LazyRows) else torch.from_numpy(array).to(device) for array in arrays]
        self.lazy = [array for array in self.arrays if isinstance(array, LazyRows)]

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """For each batch of rows (B,) one (B, columns) tensor per array, in order."""
        read = self._read(batches) if self.lazy else repeat([])
        for rows, found in zip(batches, read, strict=False):
            lazy = iter(found)
            yield [
                next(lazy).to(self.device, non_blocking=True) if isinstance(array, LazyRows) else array[rows]
                for array in self.arrays
            ]

    def _read(self, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        loader = DataLoader(
            _Reader(self.lazy),
            batch_size=None,  # the sampler names whole batches
            sampler=[rows.cpu() for rows in batches],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # a loader draws a seed; not from the noise of training
        )
        return iter(loader)


def training_rows(array: RowArray) -> TrainingRows:
    """The rows that an encoder is fitted to: a tensor, or rows that are read as they are gone through."""
    if isinstance(array, LazyRows):
        return StreamedRows(len(array), lambda start, stop: torch.from_numpy(array[torch.arange(start, stop).numpy()]))
    return torch.from_numpy(array)
