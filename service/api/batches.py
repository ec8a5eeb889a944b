"""What waits for a batch, what a batch is made of, and how it is run: in one thread, apart where it fails together.

Knows arrays and rows of answers; nothing of queues, HTTP, models or metrics.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("i2moe.batcher")

Arrays = dict[str, NDArray[np.float32]]


class Rows(Protocol):
    """What the model answers for several samples: can be taken apart and put together again."""

    def __len__(self) -> int:
        """Number of samples."""

    def rows(self, rows: slice, /) -> Self:
        """The answers for some of them."""

    @classmethod
    def join(cls, parts: Sequence[Self], /) -> Self:
        """The answers of several batches as one."""


R = TypeVar("R", bound=Rows)
R_co = TypeVar("R_co", bound=Rows, covariant=True)


class Run(Protocol[R_co]):
    """The model, called in one thread and never twice at a time."""

    def __call__(self, arrays: Arrays, /, *, in_full: bool) -> R_co:
        """The answers for a batch, one row for each sample; arrays alone unless a request in it wants its own `in_full`."""


@dataclass(frozen=True, slots=True)
class Scored(Generic[R]):
    """What became of one request."""

    output: R | None  # the rows that were answered, in order; None when there are none
    failures: dict[int, Exception]  # by position in the request
    queue_s: float  # from arrival to the start of its first batch
    inference_s: float  # in all its batches
    batch_size: int  # samples in the largest of them, its neighbours included


@dataclass(slots=True, eq=False)
class Job(Generic[R]):
    """One request: what it asks, and what has become of it so far."""

    arrays: Mapping[str, NDArray[np.float32]]
    size: int
    done: asyncio.Future[Scored[R]]
    in_full: bool
    has_left: Callable[[], bool]
    arrived: float = field(default_factory=time.perf_counter)
    taken: int = 0  # samples given to a batch so far
    queue_s: float = 0.0
    inference_s: float = 0.0
    batch_size: int = 0
    outputs: list[R] = field(default_factory=list)
    failures: dict[int, Exception] = field(default_factory=dict)

    def scored(self) -> Scored[R]:
        """What became of it, once all its samples were run."""
        output = self._joined() if self.outputs else None
        return Scored(output, self.failures, self.queue_s, self.inference_s, self.batch_size)

    def _joined(self) -> R:
        first = self.outputs[0]
        return first if len(self.outputs) == 1 else first.join(self.outputs)


class Part(NamedTuple, Generic[R]):
    """The samples of one job that go into one batch."""

    job: Job[R]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.stop - self.start

    def arrays(self) -> Arrays:
        """Theirs."""
        return {name: rows[self.start : self.stop] for name, rows in self.job.arrays.items()}

    def single(self) -> "list[Part[R]]":
        """Each sample as a part."""
        return [Part(self.job, position, position + 1) for position in range(self.start, self.stop)]


class Ran(NamedTuple, Generic[R]):
    """A part that was run on its own or with others: its rows, or why there are none."""

    part: Part[R]
    result: R | Exception


class Done(NamedTuple, Generic[R]):
    """A batch that was run."""

    ran: list[Ran[R]]
    started: float
    inference_s: float


def run_batch(run: Run[R], parts: Sequence[Part[R]]) -> Done[R]:
    """Run the parts all together, and only if that fails in ever smaller pieces. Raises nothing."""
    started = time.perf_counter()
    return Done(_ran(run, parts), started, time.perf_counter() - started)


def _ran(run: Run[R], parts: Sequence[Part[R]]) -> list[Ran[R]]:
    try:
        output = _run_together(run, parts)
    except Exception as error:  # whatever the model does, the next batch must run
        return _run_apart(run, parts, error)
    ran: list[Ran[R]] = []
    start = 0
    for part in parts:
        ran.append(Ran(part, output.rows(slice(start, start + part.size))))
        start += part.size
    return ran


def _run_apart(run: Run[R], parts: Sequence[Part[R]], error: Exception) -> list[Ran[R]]:
    smaller = parts if len(parts) > 1 else parts[0].single()
    num_samples = sum(part.size for part in parts)
    logger.warning("inference failed for %d samples together: %s", num_samples, type(error).__name__)
    if num_samples == 1:
        return [Ran(parts[0], error)]
    return [ran for part in smaller for ran in _ran(run, [part])]


def _run_together(run: Run[R], parts: Sequence[Part[R]]) -> R:
    pieces = [part.arrays() for part in parts]
    arrays = pieces[0] if len(pieces) == 1 else {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
    output = run(arrays, in_full=any(part.job.in_full for part in parts))
    expected, found = sum(part.size for part in parts), len(output)
    if found != expected:
        raise RuntimeError(f"expected {expected} rows from the model, found {found}")
    return output
