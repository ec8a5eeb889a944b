"""Requests whose reading takes long, since texts are embedded: on threads of their own, and never more than can be read.

Not the event loop's default threads: those are many, and every text would keep a core for milliseconds.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.api.errors import OverloadedError

T = TypeVar("T")


class SlowReading:
    """Reads requests in the order they come, `num_threads` at a time."""

    def __init__(self, *, num_threads: int, queue_max: int) -> None:
        """`queue_max` requests may be here at once."""
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="reading")
        self._queue_max, self._count = queue_max, 0

    async def read(self, work: Callable[[], T]) -> T:
        """What `work` comes to; it is not begun when nobody waits for it any more. Raises `OverloadedError`."""
        if self._count >= self._queue_max:
            raise OverloadedError("requests are waiting to be read")
        self._count += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._count -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
