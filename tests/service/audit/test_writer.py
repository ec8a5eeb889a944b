"""Group commits: what is kept, what is lost, and that everybody is told."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

import pytest

from service.audit.entries import AuditEntry
from service.audit.writer import AuditWriter, NotKeptError
from tests.service.audit.test_store import entry


class FakeStore:
    """Remembers transactions; waits and fails when told to."""

    def __init__(self) -> None:
        self.transactions: list[list[str]] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.fails = False
        self.prunes: list[datetime] = []
        self.closed = False

    def write(self, entries: Sequence[AuditEntry]) -> None:
        assert self.may_write.wait(10)
        if self.fails:
            raise OSError("no space left on device")
        self.transactions.append([one.request_id for one in entries])

    def prune(self, now: datetime) -> int:
        self.prunes.append(now)
        return 1

    def close(self) -> None:
        self.closed = True


def run(work: Callable[[AuditWriter, FakeStore], Coroutine[Any, Any, None]], *, max_waiting: int = 100) -> Counter[str]:
    """Do some work with a writer, close it, and answer how many entries came to what."""
    outcomes: Counter[str] = Counter()
    store = FakeStore()

    async def main() -> None:
        writer = AuditWriter(store, max_waiting=max_waiting, on_outcome=lambda outcome, n: outcomes.update({outcome: n}))
        await work(writer, store)
        await writer.close()

    asyncio.run(main())
    assert store.closed
    return outcomes


def test_what_arrives_during_a_commit_forms_the_next() -> None:
    """Ten requests cost two commits, in the order of arrival."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        store.may_write.clear()
        first = writer.submit([entry("r0")])
        await asyncio.sleep(0.01)
        others = [writer.submit([entry(f"r{i}"), entry(f"r{i}")]) for i in range(1, 10)]
        store.may_write.set()
        await asyncio.gather(first, *others)
        assert store.transactions == [["r0"], [f"r{i}" for i in range(1, 10) for _ in range(2)]]

    assert run(work) == {"kept": 19}


def test_a_failed_commit_is_told_to_everyone_in_it_and_the_next_is_tried() -> None:
    """A disk may have room again."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        store.fails = True
        with pytest.raises(NotKeptError, match="the audit store failed"):
            await writer.submit([entry()])
        store.fails = False
        await writer.submit([entry("r2")])
        assert store.transactions == [["r2"]]

    assert run(work) == {"lost": 1, "kept": 1}


def test_too_many_are_not_taken() -> None:
    """Memory is bounded; those that were taken are kept."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        store.may_write.clear()
        taken = [writer.submit([entry(f"r{i}")]) for i in range(3)]
        with pytest.raises(NotKeptError, match="too many wait"):
            await writer.submit([entry("r3")])
        store.may_write.set()
        await asyncio.gather(*taken)

    assert run(work, max_waiting=3) == {"kept": 3, "lost": 1}


def test_what_was_written_makes_room() -> None:
    """Whether or not it could be kept: a service that was busy once goes on keeping."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        for i in range(9):
            store.fails = i % 3 == 0
            with contextlib.suppress(NotKeptError):
                await writer.submit([entry(f"r{i}")] * 3)

    assert run(work, max_waiting=3) == {"kept": 18, "lost": 9}


def test_closing_writes_what_was_handed_over() -> None:
    """Nobody waited for it; nothing is taken afterwards."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        for i in range(5):
            writer.submit([entry(f"r{i}")])
        await writer.close()
        assert sum(map(len, store.transactions)) == 5
        with pytest.raises(NotKeptError):
            await writer.submit([entry("late")])

    assert run(work) == {"kept": 5, "lost": 1}


def test_a_caller_that_gave_up_does_not_stop_the_others() -> None:
    """A request that was cancelled is kept all the same: it may have been answered."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        store.may_write.clear()
        gone, patient = writer.submit([entry("r0")]), writer.submit([entry("r1")])
        gone.cancel()
        store.may_write.set()
        await patient
        assert [one for transaction in store.transactions for one in transaction] == ["r0", "r1"]

    assert run(work) == {"kept": 2}


def test_old_entries_are_pruned_at_the_start() -> None:
    """And then every hour, whether or not anything is written."""

    async def work(writer: AuditWriter, store: FakeStore) -> None:
        while not store.prunes:
            await asyncio.sleep(0.001)
        assert store.prunes[0].tzinfo is not None

    assert run(work) == {}
