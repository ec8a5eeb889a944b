"""Arrays whose rows stay in their files until they are asked for: data too large for memory.

Every array here is row-aligned, (N, ...): numbers in memory (`NDArray`) or `LazyRows`; both give rows as `array[positions]`.
Lazy rows hold no open file, so they may be sent to other processes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

FloatArray = NDArray[np.float32]
Positions = NDArray[np.intp]  # (B,), of rows
_CELLS_AT_ONCE = 1 << 22  # where all rows are gone through: 16 MiB of float32


class LazyRows(ABC):
    """An (N, ...) array of numbers whose rows are read when they are asked for."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(N, ...), known without reading."""

    @abstractmethod
    def __getitem__(self, rows: Positions) -> NDArray[Any]:
        """The rows at these positions, in their order: (B, ...). Raises `DataError`."""

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Positions) -> "LazyRows":
        """These rows alone, still unread."""
        return AlignedRows(self, rows)

    def absent(self) -> NDArray[np.bool_]:
        """Which rows (N,) hold no value at all. Reads them all, unless a subclass knows."""
        return np.concatenate([absent_rows(part) for part in parts(self)])


RowArray = NDArray[Any] | LazyRows
Column = Sequence[Any] | RowArray  # one value per row, None where missing, or one array
Columns = Mapping[str, Mapping[str, Column]]  # modality -> feature -> column


def take(array: RowArray, rows: Positions) -> RowArray:
    """Some rows: copied from memory, or else still unread."""
    return array.take(rows) if isinstance(array, LazyRows) else array[rows]


def absent_rows(array: RowArray) -> NDArray[np.bool_]:
    """Which rows (N,) hold no value at all."""
    if isinstance(array, LazyRows):
        return array.absent()
    return np.logical_and.reduce(np.isnan(array.reshape(len(array), -1)), axis=1)


def rows_at_once(num_cells: int) -> int:
    """How many rows of so many cells are read together where all are gone through."""
    return max(1, _CELLS_AT_ONCE // max(1, num_cells))


def parts(array: RowArray) -> Iterator[NDArray[Any]]:
    """All rows in order, a bounded number of cells at a time."""
    size = rows_at_once(math.prod(array.shape[1:]))
    for start in range(0, len(array), size):
        yield array[np.arange(start, min(start + size, len(array)))]


def whole(array: RowArray) -> NDArray[Any]:
    """All rows in memory."""
    return array[np.arange(len(array))] if isinstance(array, LazyRows) else array


def kept_in_memory(array: RowArray, limit_bytes: int) -> RowArray:
    """Lazy rows that take at most `limit_bytes` as float32 are read now; others stay where they are."""
    fits = math.prod(array.shape) * np.dtype(np.float32).itemsize <= limit_bytes
    return whole(array) if fits else array


@dataclass(frozen=True, slots=True)
class AlignedRows(LazyRows):
    """Rows of `source` in another order; a negative position is a row of NaN."""

    source: LazyRows
    positions: Positions  # (N,)

    @property
    def shape(self) -> tuple[int, ...]:
        """One row for every position."""
        return (len(self.positions), *self.source.shape[1:])

    def __getitem__(self, rows: Positions) -> NDArray[Any]:
        positions = self.positions[rows]
        there = positions >= 0
        values = self.source[positions[there]]
        if there.all():
            return values
        aligned = np.full((len(rows), *values.shape[1:]), np.nan, np.result_type(values, np.float32))
        aligned[there] = values
        return aligned

    def absent(self) -> NDArray[np.bool_]:
        """As the source knows it."""
        return (self.positions < 0) | self.source.absent()[self.positions]


@dataclass(frozen=True, slots=True)
class NpyRows(LazyRows):
    """A .npy file of numbers, mapped and not read."""

    path: Path
    sizes: tuple[int, ...]  # (N, ...)

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file says."""
        return self.sizes

    def __getitem__(self, rows: Positions) -> NDArray[Any]:
        return np.asarray(map_npy(self.path)[rows])


def map_npy(path: Path) -> NDArray[Any]:
    """A .npy file as an array that is read where it is looked at. Raises `DataError`."""
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a .npy array ({error})") from error
    return mapped


@dataclass(frozen=True, slots=True)
class FiniteRows(LazyRows):
    """`source` as float32, infinity read as missing."""

    source: LazyRows

    @property
    def shape(self) -> tuple[int, ...]:
        """As the source's."""
        return self.source.shape

    def __getitem__(self, rows: Positions) -> FloatArray:
        return finite(self.source[rows])


def to_float32(values: NDArray[Any]) -> FloatArray:
    """A copy as float32; what is beyond it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float32)


def finite(values: NDArray[Any]) -> FloatArray:
    """A copy as float32, infinity read as missing."""
    copied = to_float32(values)
    copied[np.isinf(copied)] = np.nan
    return copied
