"""Threads that nobody waits for. Where a thread has to be waited for here, it is by events, never by a time."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from service.api.background import NICENESS, Item, Worker, beside
from tests.serving import ROOT

WAIT_S = 10.0


class Slow:
    """Work that can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.was_wanted = True
        self.begun, self.may_go, self.ended = threading.Event(), threading.Event(), threading.Semaphore(0)

    def work(self, items: list[str], is_wanted: Callable[[], bool]) -> None:
        self.begun.set()
        assert self.may_go.wait(WAIT_S)
        self.batches.append(items)
        self.was_wanted = is_wanted()
        self.ended.release()


def worker(slow: Slow, *, max_size: int = 4, max_bytes: int = 100) -> Worker[str]:
    return Worker(slow.work, size_at_once=2, max_size=max_size, max_bytes=max_bytes)


def hold(slow: Slow, held: Worker[str]) -> None:
    """Give it something that it does not come to the end of."""
    assert held.give(Item("held", 1, 1))
    assert slow.begun.wait(WAIT_S)


def test_what_waits_is_worked_through_together_and_in_order() -> None:
    """As many at once as were asked for, the last of them whole."""
    slow = Slow()
    it = worker(slow)
    hold(slow, it)
    assert [it.give(Item(name, size, 1)) for name, size in (("a", 1), ("b", 2), ("c", 1))] == [True] * 3
    slow.may_go.set()
    for _ in range(3):
        assert slow.ended.acquire(timeout=WAIT_S)
    assert slow.batches == [["held"], ["a", "b"], ["c"]]
    it.stop()
    it.join()


def test_what_is_too_much_is_not_taken() -> None:
    """Neither too many nor too large; what is being worked on does not count, and room comes back."""
    slow = Slow()
    it = worker(slow)
    hold(slow, it)
    assert it.give(Item("a", 4, 10))
    assert not it.give(Item("b", 1, 1))
    slow.may_go.set()
    for _ in range(2):
        assert slow.ended.acquire(timeout=WAIT_S)
    assert not it.give(Item("large", 1, 101))
    assert it.give(Item("c", 1, 100))
    it.stop()
    it.join()


def test_stopping_drops_what_waits_and_waits_for_nobody() -> None:
    """Also while the work hangs; what is dropped is told."""
    slow = Slow()
    it = worker(slow)
    hold(slow, it)
    it.give(Item("a", 3, 1))
    assert it.stop() == 3
    slow.may_go.set()
    it.join()
    assert slow.batches == [["held"]]
    assert not slow.was_wanted


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's on Linux alone")
def test_a_lowly_thread_goes_last_and_no_other() -> None:
    """The thread that asks keeps its priority, and so do threads for what does not only compute."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert beside(niceness, lowly=True).result(WAIT_S) == NICENESS
    assert beside(niceness).result(WAIT_S) == niceness() == before


def test_work_beside_comes_to_something_or_fails() -> None:
    """With its answer, or with what it raised."""
    assert beside(lambda: 42).result(WAIT_S) == 42
    with pytest.raises(ZeroDivisionError):
        beside(lambda: 1 // 0).result(WAIT_S)


def test_an_exit_does_not_wait_for_work_beside() -> None:
    """Work that hangs, plain or lowly, is left alone when the process ends."""
    program = """
import threading
from service.api.background import Item, Worker, beside
for lowly in (False, True):
    beside(threading.Event().wait, lowly=lowly)
worker = Worker(lambda *_: threading.Event().wait(), size_at_once=1, max_size=1, max_bytes=1)
worker.give(Item("a", 1, 1))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_who_waits_may_leave() -> None:
    """The work goes on, and its end disturbs nobody."""
    may_go, ended = threading.Event(), threading.Event()

    def work() -> None:
        assert may_go.wait(WAIT_S)
        ended.set()

    async def scenario() -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(beside(work)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())
    may_go.set()
    assert ended.wait(WAIT_S)
