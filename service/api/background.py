"""Work that nobody waits for, in daemon threads that never hold up an exit.

Only what computes without Python's lock is done at low priority. A thread that the system stops while it holds that lock stops
all requests, and one of low priority is stopped for long where there is much to do.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
NICENESS = 19
_PAUSE_S = 0.05  # between looks at the queue: what comes meanwhile is worked through together
_STOP_S = 1.0


def beside(work: Callable[[], T], *, lowly: bool = False) -> Future[T]:
    """What `work` will have come to, in a thread of its own; of low priority where it computes and little else."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        if lowly:
            _lower_priority()
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=f"beside-{'lowly' if lowly else 'plain'}", daemon=True).start()
    return future


def _lower_priority() -> None:
    """Let other threads go first. Linux counts niceness by thread; elsewhere it is the whole process's and is left alone."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class Item(NamedTuple, Generic[T]):
    """Something to work on, and how much of it there is."""

    work: T
    size: int
    num_bytes: int


class Worker(Generic[T]):
    """Works through what it is given, in one thread. What would be too much to wait is not taken.

    One thread gives and one takes, and neither needs a lock.
    """

    def __init__(
        self, work: Callable[[list[T], Callable[[], bool]], None], *, size_at_once: int, max_size: int, max_bytes: int
    ) -> None:
        """`max_size` and `max_bytes` may wait.

        `work` is called with items of about `size_at_once`, and a function that says whether they are still wanted; it raises
        nothing.
        """
        self._work, self._size_at_once = work, size_at_once
        self._max_size, self._max_bytes = max_size, max_bytes
        self._items: deque[Item[T]] = deque()
        self._given = self._taken = Item(None, 0, 0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def give(self, item: Item[T]) -> bool:
        """Whether the item was taken. Waits for nothing."""
        size = self._given.size + item.size
        num_bytes = self._given.num_bytes + item.num_bytes
        if size - self._taken.size > self._max_size or num_bytes - self._taken.num_bytes > self._max_bytes:
            return False
        self._given = Item(None, size, num_bytes)
        self._items.append(item)
        return True

    def stop(self) -> int:
        """Begin nothing more; answers the size of what is dropped."""
        self._stopping.set()
        return sum(item.size for item in iter(self._pop, None))

    def join(self) -> None:
        """Wait for what has begun, but not long. A thread that comes out of a graph after Python's end may abort the process."""
        self._thread.join(_STOP_S)

    def _is_wanted(self) -> bool:
        return not self._stopping.is_set()

    def _pop(self) -> Item[T] | None:
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def _run(self) -> None:
        while self._is_wanted():
            if items := self._take():
                self._work(items, self._is_wanted)
            if not self._items:
                self._stopping.wait(_PAUSE_S)

    def _take(self) -> list[T]:
        size, num_bytes, works = self._taken.size, self._taken.num_bytes, []
        while size - self._taken.size < self._size_at_once and (item := self._pop()) is not None:
            size, num_bytes = size + item.size, num_bytes + item.num_bytes
            works.append(item.work)
        self._taken = Item(None, size, num_bytes)
        return works
