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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.api.batches import Done, Job, Part, R, Run, Scored, run_batch
from service.api.logs import places

logger = logging.getLogger("i2moe.batcher")


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
        self._jobs: deque[Job[R]] = deque()
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
        job: Job[R] = Job(arrays, size, self._loop.create_future(), in_full, has_left)
        self._jobs.append(job)
        self._count_waiting(size)
        if self._may_begin:
            self._loop.call_soon(self._begin, context=self._context)  # with what else arrives in this turn of the loop
        try:
            return await job.done
        finally:
            self._leave(job)

    def _leave(self, job: Job[R]) -> None:
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

    def _take(self) -> list[Part[R]]:
        """The head of the queue as one batch: whole requests, or a slice of the first if it alone is too large."""
        parts: list[Part[R]] = []
        room = self._max_batch_size
        while self._jobs and room:
            job = self._jobs[0]
            if self._has_left(job):
                self._drop(job)
                continue
            left = job.size - job.taken
            if left > room and parts and left <= self._max_batch_size:
                break
            size = min(left, room)
            parts.append(Part(job, job.taken, job.taken + size))
            job.taken += size
            room -= size
            if job.taken == job.size:
                self._jobs.popleft()
        self._count_waiting(room - self._max_batch_size)
        return parts

    @staticmethod
    def _has_left(job: Job[R]) -> bool:
        try:
            return job.has_left()
        except Exception as error:  # a server that cannot be asked, for instance: the batch must go on
            logger.error("whether a caller has left is unknown: %s", places(error))  # noqa: TRY400 - never the text
            return False

    def _drop(self, job: Job[R]) -> None:
        self._leave(job)
        if not job.done.done():
            job.done.set_exception(CallerLeftError("the caller left before its samples were run"))

    def _dispatch(self, parts: list[Part[R]]) -> None:
        try:
            running = self._loop.run_in_executor(self._thread, run_batch, self._run, parts)
        except Exception as error:  # the machine has no thread left
            logger.error("a batch could not be run: %s", places(error))  # noqa: TRY400 - never the text
            self._fail(parts, error)
            return
        self._num_begun += 1
        running.add_done_callback(partial(self._finish, parts), context=self._context)

    def _finish(self, parts: list[Part[R]], running: asyncio.Future[Done[R]]) -> None:
        """Begin the next batch, then tell those who wait for this one."""
        self._num_begun -= 1
        try:
            self._begin()
        except Exception as error:  # those whose batch is done get their answers whatever becomes of the next
            logger.error("a batch could not be begun: %s", places(error))  # noqa: TRY400 - never the text
        try:
            done = running.result()
            batch = Batch(sum(part.size for part in parts), done.inference_s)
            self._hand_out(parts, done, batch)
            self._on_batch(batch)
        except Exception as error:
            logger.error("a batch could not be handed out: %s", places(error))  # noqa: TRY400 - never the text
            self._fail(parts, error)
        self._finished.set()

    def _hand_out(self, parts: list[Part[R]], done: Done[R], batch: Batch) -> None:
        for part, result in done.ran:
            if isinstance(result, Exception):
                part.job.failures[part.start] = result
            else:
                part.job.outputs.append(result)
        for part in parts:
            job = part.job
            if part.start == 0:
                job.queue_s = done.started - job.arrived
            job.inference_s += batch.inference_s
            job.batch_size = max(job.batch_size, batch.num_samples)
            if part.stop == job.size and not job.done.done():
                self._tell(job)

    @staticmethod
    def _tell(job: Job[R]) -> None:
        try:
            job.done.set_result(job.scored())
        except Exception as error:  # its own: its neighbours are told all the same
            logger.error("an answer could not be put together: %s", places(error))  # noqa: TRY400 - never the text
            job.done.set_exception(error)

    def _fail(self, parts: list[Part[R]], error: Exception) -> None:
        for part in parts:
            if not part.job.done.done():
                part.job.done.set_exception(error)
