"""Many requests, one commit: a disk takes as long to keep one prediction for certain as to keep a thousand."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, Protocol

from service.audit.entries import AuditEntry

logger = logging.getLogger("i2moe.audit")

Outcome = Literal["kept", "lost"]
_PRUNE_EVERY_S = 3600.0


class NotKeptError(RuntimeError):
    """Predictions could not be kept."""


class Store(Protocol):
    """What the writer needs of `PredictionStore`. Any exception is a failure to keep."""

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """Keep all of these, or none."""

    def prune(self, now: datetime) -> int:
        """Forget what is too old."""

    def close(self) -> None:
        """Let go of everything."""


class AuditWriter:
    """Writes to one store, in a thread, one transaction after the other; what arrives meanwhile forms the next.

    Belongs to the event loop that it was started in.
    """

    def __init__(self, store: Store, *, max_waiting: int, on_outcome: Callable[[Outcome, int], None]) -> None:
        """`max_waiting` entries may wait; beyond it none is taken. `on_outcome` is told of every entry once."""
        self._store, self._max_waiting, self._on_outcome = store, max_waiting, on_outcome
        self._waiting: list[tuple[Sequence[AuditEntry], asyncio.Future[None]]] = []
        self._num_waiting = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._tasks = [asyncio.create_task(self._write_all()), asyncio.create_task(self._prune_for_ever())]

    def submit(self, entries: Sequence[AuditEntry]) -> "asyncio.Future[None]":
        """Hand entries over. The future is done when they are kept, or holds `NotKeptError`; it need not be awaited."""
        done = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        if self._closing or self._num_waiting + len(entries) > self._max_waiting:
            self._fail(entries, done, "too many wait to be written")
            return done
        self._waiting.append((entries, done))
        self._num_waiting += len(entries)
        self._arrived.set()
        return done

    async def close(self) -> None:
        """Write what was handed over, then close the store."""
        self._closing = True
        self._arrived.set()
        writing, pruning = self._tasks
        pruning.cancel()
        await asyncio.gather(writing, pruning, return_exceptions=True)
        await asyncio.to_thread(self._store.close)

    async def _write_all(self) -> None:
        while self._waiting or not self._closing:
            await self._arrived.wait()
            self._arrived.clear()
            if self._waiting:
                await self._write_waiting()

    async def _write_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        entries = [entry for part, _ in batch for entry in part]
        try:
            await asyncio.to_thread(self._store.write, entries)
        except Exception as error:  # whatever it is, nothing of it was kept
            logger.error("%d predictions were not kept: %s", len(entries), error)  # noqa: TRY400 - no trace holds more
            for part, done in batch:
                self._fail(part, done, "the audit store failed")
        else:
            self._on_outcome("kept", len(entries))
            for _, done in batch:
                if not done.done():
                    done.set_result(None)
        finally:
            self._num_waiting -= len(entries)

    def _fail(self, entries: Sequence[AuditEntry], done: "asyncio.Future[None]", why: str) -> None:
        self._on_outcome("lost", len(entries))
        if not done.done():
            done.set_exception(NotKeptError(why))

    async def _prune_for_ever(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # the next hour is another chance; writing tells of a store that fails
                if num_old := await asyncio.to_thread(self._store.prune, datetime.now(UTC)):
                    logger.info("%d predictions were kept long enough and are deleted", num_old)
            await asyncio.sleep(_PRUNE_EVERY_S)


def _seen(done: "asyncio.Future[None]") -> None:
    """Take notice of a failure nobody waits for."""
    if not done.cancelled():
        done.exception()
