"""Many small requests, one pass through the graph: a bounded in-process micro-batcher.

Whole requests are taken from the queue, up to `max_batch_size` samples, and run in one thread. Nothing waits while nothing
runs: a lone request is dispatched at once, and what arrives while a batch runs forms the next one, which is begun before
anybody is told of the last. A full batch, which nothing could join, is given to the thread ahead, so that it never waits for
the event loop. Samples are counted, not requests; a request larger than a batch is split and rejoined. When a batch fails, its
requests are run one by one, and the samples of a failing request one by one, so a sample never fails its neighbours.

Knows arrays and rows of answers; nothing of HTTP, models or metrics.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.api.logs import places

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


class QueueFullError(RuntimeError):
    """Too many samples are waiting already."""


class BatcherClosedError(RuntimeError):
    """The batcher takes no more requests."""


class CallerLeftError(RuntimeError):
    """Nobody waits for the answer any more."""


class Batch(NamedTuple):
    """One finished batch, for whoever keeps count."""

    num_samples: int
    inference_s: float


@dataclass(frozen=True, slots=True)
class Scored(Generic[R]):
    """What became of one request."""

    output: R | None  # the rows that were answered, in order; None when there are none
    failures: dict[int, Exception]  # by position in the request
    queue_s: float  # from arrival to the start of its first batch
    inference_s: float  # in all its batches
    batch_size: int  # samples in the largest of them, its neighbours included


@dataclass(slots=True, eq=False)
class _Job(Generic[R]):
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
        output = self._joined() if self.outputs else None
        return Scored(output, self.failures, self.queue_s, self.inference_s, self.batch_size)

    def _joined(self) -> R:
        first = self.outputs[0]
        return first if len(self.outputs) == 1 else first.join(self.outputs)


class _Part(NamedTuple, Generic[R]):
    """The samples of one job that go into one batch."""

    job: _Job[R]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def arrays(self) -> Arrays:
        return {name: rows[self.start : self.stop] for name, rows in self.job.arrays.items()}

    def single(self) -> "list[_Part[R]]":
        return [_Part(self.job, position, position + 1) for position in range(self.start, self.stop)]


class _Ran(NamedTuple, Generic[R]):
    """A part that was run on its own or with others: its rows, or why there are none."""

    part: _Part[R]
    result: R | Exception


class _Done(NamedTuple, Generic[R]):
    """A batch that was run."""

    ran: list[_Ran[R]]
    started: float
    inference_s: float


class Batcher(Generic[R]):
    """Runs requests in batches. Make, use and close it inside one event loop."""

    def __init__(
        self,
        run: Run[R],
        *,
        max_batch_size: int,
        queue_max: int,
        max_wait_s: float = 0.0,
        on_batch: Callable[[Batch], None] = lambda _: None,
        on_depth: Callable[[int], None] = lambda _: None,
    ) -> None:
        """In the event loop, `on_batch` is called after each batch and `on_depth` whenever another number of samples waits."""
        self._run, self._on_batch, self._on_depth = run, on_batch, on_depth
        self._max_batch_size, self._queue_max, self._max_wait_s = max_batch_size, queue_max, max_wait_s
        self._jobs: deque[_Job[R]] = deque()
        self._depth = 0
        self._num_begun = 0  # batches that the thread has, the one it runs included
        self._waking: asyncio.TimerHandle | None = None
        self._finished = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._loop = asyncio.get_running_loop()
        self._context = Context()  # its own, or its log lines would be those of some request

    @property
    def depth(self) -> int:
        """Samples that wait."""
        return self._depth

    @property
    def is_full(self) -> bool:
        """Whether not even one sample more may wait."""
        return self._depth >= self._queue_max

    async def submit(
        self,
        arrays: Mapping[str, NDArray[np.float32]],
        size: int,
        *,
        in_full: bool = True,
        has_left: Callable[[], bool] = lambda: False,
    ) -> Scored[R]:
        """Score `size` samples, given as (size, columns) arrays; answered with arrays alone, or all there is where `in_full`.

        Raises `QueueFullError` and `BatcherClosedError` at once. Who is cancelled leaves the queue. `has_left` is asked,
        in the event loop, before samples go into a batch: where it is true they do not, and `CallerLeftError` is raised.
        What fills a batch goes into one while the batch before runs, and waits no more.
        """
        if self._closed:
            raise BatcherClosedError("the batcher is closed")
        if self._depth + size > self._queue_max:
            raise QueueFullError(f"{self._depth} samples are waiting, {size} more would exceed {self._queue_max}")
        job: _Job[R] = _Job(arrays, size, self._loop.create_future(), in_full, has_left)
        self._jobs.append(job)
        self._count_waiting(size)
        if self._may_begin:
            self._loop.call_soon(self._begin, context=self._context)  # with what else arrives in this turn of the loop
        try:
            return await job.done
        finally:
            self._leave(job)

    def _leave(self, job: _Job[R]) -> None:
        """Take what is left of a job out of the queue."""
        if job.taken < job.size:
            self._jobs.remove(job)
            self._count_waiting(job.taken - job.size)
            job.taken = job.size

    def _count_waiting(self, change: int) -> None:
        self._depth += change
        self._on_depth(self._depth)

    async def close(self) -> None:
        """Take nothing new, answer everything that was accepted, then stop."""
        self._closed = True
        self._context.run(self._begin)
        while self._num_begun:
            self._finished.clear()
            await self._finished.wait()
        self._thread.shutdown()

    @property
    def _fills_a_batch(self) -> bool:
        return self._depth >= self._max_batch_size

    @property
    def _may_begin(self) -> bool:
        """Whether the thread has nothing to do, or has one batch and what waits would fill another."""
        return self._num_begun < (2 if self._fills_a_batch else 1)

    def _begin(self) -> None:
        """Give the thread the batches that it may have."""
        while self._jobs and self._may_begin and self._has_had_its_time():
            if parts := self._take():  # else every waiter has left
                self._dispatch(parts)

    def _has_had_its_time(self) -> bool:
        """Whether what waits has waited long enough for company; if not, `_begin` is called again when it has."""
        left_s = self._jobs[0].arrived + self._max_wait_s - time.perf_counter()
        if left_s <= 0 or self._fills_a_batch or self._closed:
            return True
        if self._waking is None:
            self._waking = self._loop.call_later(left_s, self._wake, context=self._context)
        return False

    def _wake(self) -> None:
        self._waking = None
        self._begin()

    def _take(self) -> list[_Part[R]]:
        """The head of the queue as one batch: whole requests, or a slice of the first if it alone is too large."""
        parts: list[_Part[R]] = []
        room = self._max_batch_size
        while self._jobs and room:
            job = self._jobs[0]
            if job.has_left():
                self._drop(job)
                continue
            left = job.size - job.taken
            if left > room and parts and left <= self._max_batch_size:
                break
            size = min(left, room)
            parts.append(_Part(job, job.taken, job.taken + size))
            job.taken += size
            room -= size
            if job.taken == job.size:
                self._jobs.popleft()
        self._count_waiting(room - self._max_batch_size)
        return parts

    def _drop(self, job: _Job[R]) -> None:
        self._leave(job)
        if not job.done.done():
            job.done.set_exception(CallerLeftError("the caller left before its samples were run"))

    def _dispatch(self, parts: list[_Part[R]]) -> None:
        try:
            running = self._loop.run_in_executor(self._thread, self._timed, parts)
        except Exception as error:  # the machine has no thread left
            logger.error("a batch could not be run: %s", places(error))  # noqa: TRY400 - never the text
            self._fail(parts, error)
            return
        self._num_begun += 1
        running.add_done_callback(partial(self._finish, parts), context=self._context)

    def _finish(self, parts: list[_Part[R]], running: asyncio.Future[_Done[R]]) -> None:
        """Begin the next batch, then tell those who wait for this one."""
        self._num_begun -= 1
        self._begin()
        try:
            done = running.result()
            self._hand_out(parts, done)
            self._on_batch(Batch(sum(part.size for part in parts), done.inference_s))
        except Exception as error:
            logger.error("a batch could not be handed out: %s", places(error))  # noqa: TRY400 - never the text
            self._fail(parts, error)
        self._finished.set()

    def _timed(self, parts: list[_Part[R]]) -> _Done[R]:
        started = time.perf_counter()
        return _Done(self._compute(parts), started, time.perf_counter() - started)

    def _compute(self, parts: list[_Part[R]]) -> list[_Ran[R]]:
        """Run in the thread: all together, and only if that fails in ever smaller pieces."""
        try:
            output = self._run_together(parts)
        except Exception as error:  # whatever the model does, the next batch must run
            return self._compute_apart(parts, error)
        ran: list[_Ran[R]] = []
        start = 0
        for part in parts:
            ran.append(_Ran(part, output.rows(slice(start, start + part.size))))
            start += part.size
        return ran

    def _compute_apart(self, parts: list[_Part[R]], error: Exception) -> list[_Ran[R]]:
        smaller = parts if len(parts) > 1 else parts[0].single()
        num_samples = sum(part.size for part in parts)
        logger.warning("inference failed for %d samples together: %s", num_samples, type(error).__name__)
        if num_samples == 1:
            return [_Ran(parts[0], error)]
        return [ran for part in smaller for ran in self._compute([part])]

    def _run_together(self, parts: list[_Part[R]]) -> R:
        pieces = [part.arrays() for part in parts]
        arrays = pieces[0] if len(pieces) == 1 else {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        output = self._run(arrays, in_full=any(part.job.in_full for part in parts))
        expected, found = sum(part.size for part in parts), len(output)
        if found != expected:
            raise RuntimeError(f"expected {expected} rows from the model, found {found}")
        return output

    def _hand_out(self, parts: list[_Part[R]], done: _Done[R]) -> None:
        num_samples = sum(part.size for part in parts)
        for part, result in done.ran:
            if isinstance(result, Exception):
                part.job.failures[part.start] = result
            else:
                part.job.outputs.append(result)
        for part in parts:
            job = part.job
            if part.start == 0:
                job.queue_s = done.started - job.arrived
            job.inference_s += done.inference_s
            job.batch_size = max(job.batch_size, num_samples)
            if part.stop == job.size and not job.done.done():
                job.done.set_result(job.scored())

    def _fail(self, parts: list[_Part[R]], error: Exception) -> None:
        for part in parts:
            if not part.job.done.done():
                part.job.done.set_exception(error)
