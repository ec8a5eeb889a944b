"""What every way of asking for predictions shares: a deadline, the queue, and how long parts of the work take."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TypeVar

from prometheus_client import Histogram
from starlette.requests import Request

from service.api.batcher import Batcher, BatcherClosedError, CallerLeftError, QueueFullError
from service.api.batches import Arrays, Rows, Scored
from service.api.errors import DeadlineError, NotReadyError, OverloadedError
from service.api.middleware import request_info
from service.api.runtime import CLOSING, Runtime
from service.api.tracing import add_span

T = TypeVar("T")
R = TypeVar("R", bound=Rows)


def runtime_of(request: Request) -> Runtime:
    """The serving process's runtime."""
    runtime: Runtime = request.app.state.runtime
    return runtime


async def within_deadline(request: Request, runtime: Runtime, answer: Awaitable[T]) -> T:
    """What `answer` comes to; raises `DeadlineError` when the request takes longer than it may, counted from its arrival."""
    timeout_s = runtime.settings.timeout_s
    try:
        async with asyncio.timeout(timeout_s - request_info(request).elapsed_s):
            return await answer
    except TimeoutError:
        raise DeadlineError(f"expected an answer within {timeout_s:g} s, found none") from None


class ClientLeftError(Exception):
    """The client hung up before its samples were run: nobody is there to be told anything."""


def has_left(request: Request) -> bool:
    """Whether the client of a request that was read whole has hung up.

    Asks the server for its next message and takes it back where there is none yet. Starlette's `is_disconnected` does the same at
    22 us, with a scope to cancel; this takes 1.6, little enough for every request of every batch.
    """
    asked = request.receive().__await__()
    try:
        next(asked)
    except StopIteration as told:
        return bool(told.value["type"] == "http.disconnect")
    asked.close()
    return False


async def submit(
    request: Request,
    batcher: Batcher[R],
    arrays: Arrays,
    size: int,
    *,
    provider: str,
    span: str = "inference",
    in_full: bool = True,
) -> Scored[R]:
    """Score `size` samples with whatever else waits; `span` is what traces call it. Answers are arrays alone unless `in_full`.

    Raises `OverloadedError`, `NotReadyError` and `ClientLeftError`.
    """
    arrived = perf_counter()
    try:
        scored = await batcher.submit(arrays, size, in_full=in_full, has_left=partial(has_left, request))
    except QueueFullError:
        raise OverloadedError from None
    except BatcherClosedError:
        raise NotReadyError(CLOSING) from None
    except CallerLeftError:
        raise ClientLeftError from None
    started = arrived + scored.queue_s
    add_span("queue", arrived, started)
    told = {"i2moe.samples": size, "i2moe.batch_size": scored.batch_size, "i2moe.failures": len(scored.failures)}
    add_span(span, started, perf_counter(), **told, **{"i2moe.provider": provider})
    return scored


@contextmanager
def timed(histogram: Histogram, span: str) -> Iterator[None]:
    """Observe how long the block takes, unless it fails; `span` is what traces call it."""
    started = perf_counter()
    yield
    ended = perf_counter()
    histogram.observe(ended - started)
    add_span(span, started, ended)


async def aside(work: Callable[[], T], *, large: bool) -> T:
    """Do small work here and large work in a thread: it would hold up other requests for milliseconds."""
    return await asyncio.to_thread(work) if large else work()
