"""The training rows that encoders learn their statistics from: a tensor, or rows that are read as they are gone through."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_ROWS_AT_ONCE = 64
_CELLS_AT_ONCE = 1 << 24


class StreamedRows:
    """(N, ...) rows that stay in their files. Has of a tensor's methods what fitting a standardisation needs."""

    def __init__(self, num_rows: int, read: Callable[[int, int], Tensor]) -> None:
        self.num_rows, self.read = num_rows, read

    def __len__(self) -> int:
        return self.num_rows

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, `size` at a time, read anew in every call."""
        for start in range(0, self.num_rows, size):
            yield self.read(start, min(start + size, self.num_rows))

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> "StreamedRows":
        """As a tensor's."""
        return self.map(lambda rows: rows.unflatten(dim, sizes))

    def map(self, change: Callable[[Tensor], Tensor]) -> "StreamedRows":
        """The rows changed, part by part, as they are read."""
        return StreamedRows(self.num_rows, lambda start, stop: change(self.read(start, stop)))


TrainingRows = Tensor | StreamedRows  # (N, F), NaN where missing


def changed(rows: TrainingRows, change: Callable[[Tensor], Tensor]) -> TrainingRows:
    """`change` of all rows, which must treat each for itself."""
    return rows.map(change) if isinstance(rows, StreamedRows) else change(rows)


def some_columns(rows: TrainingRows, columns: Tensor) -> Tensor:
    """A few columns (N, len(columns)) in memory."""
    if isinstance(rows, StreamedRows):
        return torch.cat([part[:, columns] for part in rows.split(_ROWS_AT_ONCE)])
    return rows[:, columns]


def column_parts(rows: TrainingRows, columns: Tensor) -> Iterator[Tensor]:
    """Columns in double precision, a bounded number of cells at a time."""
    for part in rows.split(max(1, _CELLS_AT_ONCE // max(1, len(columns)))):
        yield part[:, columns].double()
