"""A second model that scores what is served, silently: how far its answers lie from the served ones is seen in metrics alone.

Nothing that a client sees depends on it. A request is offered when its answer is computed; an offer is a look at a counter and an
append to a bounded queue, and all else happens in other threads. The graph is run on the CPU, by one thread of low priority. What
does not fit the queue is skipped, and at shutdown all that waits. Metrics are written in the event loop, once a batch.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from service.api.background import Item, Worker, beside
from service.api.batches import Arrays
from service.api.comparing import ERROR, SKIPPED, Comparing, Offer, Other, Report
from service.api.loading import Following, info_of, load_model, told
from service.api.logs import places
from service.api.requests import RequestReader, Unread
from service.bundle.answers import Answers
from service.bundle.choose import find_bundle
from service.bundle.comparison import Comparison, IncomparableError, Told
from service.bundle.manifest import Manifest
from service.bundle.output import Output

if TYPE_CHECKING:
    from service.api.metrics import Metrics
    from service.api.settings import Settings

logger = logging.getLogger("i2moe.shadow")

LOADING = "the shadow is still being loaded"
MAX_WAITING_BYTES = 64 << 20
ROWS_AT_ONCE = 32  # one thread gains nothing by more, and what has begun is to end soon
_GOLDEN = 2654435769  # 2^32 over the golden ratio: its multiples fall evenly, whatever the rhythm of requests
_FLOAT_BYTES = 4


class _Running(NamedTuple):
    """A shadow that is compared with the served model."""

    other: Other
    comparison: Comparison
    worker: Worker[Offer]
    row_bytes: int  # of a sample's arrays


class Shadow:
    """The shadow of one serving process; make, use and close it inside one event loop. Nothing here raises."""

    def __init__(self, settings: "Settings", metrics: "Metrics", *, path: Path) -> None:
        """`path` is a bundle, or a folder of bundles of which the last created is taken."""
        self._settings, self._metrics = settings, metrics
        self._bundles = Following(find=partial(find_bundle, path), load=self._load)
        self._problem: str | None = None  # with the bundle that is there
        self._unmatched: str | None = LOADING  # why what is loaded is not compared with what is served
        self._served: Manifest | None = None
        self._other: Other | None = None
        self._matched: tuple[Other, Manifest] | None = None  # that were last looked at together
        self._running: _Running | None = None
        self._matching = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_requests = 0

    @property
    def status(self) -> dict[str, Any]:
        """Which model is compared, or why none is or not the one that is there: as GET /model tells it."""
        model = None if self._running is None else self._running.other.info
        return {"model": model, "share": self._settings.shadow_share, "problem": self._problem or self._unmatched}

    def open(self) -> None:
        """Load the bundle beside the requests, and look for another as often as for another one to serve."""
        self._metrics.shadow.problem.set(1)
        self._begin(self._watch())

    async def _watch(self) -> None:
        await self.follow()
        while self._settings.watch_s:
            await asyncio.sleep(self._settings.watch_s)
            await self.follow()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def follow(self, *, limit_s: float | None = None) -> None:
        """Compare the bundle that is there now; where it cannot be loaded, go on with the one before.

        Comes back after `limit_s`, whatever has become of it by then.
        """
        await asyncio.wait({self._begin(self._follow())}, timeout=limit_s)

    async def _follow(self) -> None:
        looked = await self._bundles.look()
        if looked.loaded is not None:
            self._other = looked.loaded
        elif looked.is_news:
            logger.error("the shadow bundle that is there is not loaded: %s", looked.problem)
        self._problem = looked.problem
        await self._match()

    def compare_with(self, served: Manifest) -> None:
        """Another model is served from now on."""
        self._served = served
        self._begin(self._match())

    async def _load(self, path: Path) -> Other:
        """On the CPU: memory and time of a GPU are the served model's."""
        own = self._settings.model_copy(
            update={"provider": "cpu", "require_gpu": False, "num_threads": 1, "max_batch_size": ROWS_AT_ONCE}
        )
        bundle, predictor = await asyncio.wrap_future(beside(partial(load_model, path, own)))
        reader = RequestReader(bundle.manifest.features, max_instances=own.max_instances)

        def run(arrays: Arrays) -> Output:
            return beside(partial(predictor.run, arrays), lowly=True).result()

        return Other(bundle.manifest, info_of(bundle, predictor), run, reader)

    async def _match(self) -> None:
        """Compare what is loaded with what is served, where that is not done already."""
        async with self._matching:
            other, served = self._other, self._served
            if other is not None and served is not None and not self._is_matched(other, served):
                self._retire()
                self._matched, self._unmatched = (other, served), LOADING
                self._unmatched = await self._try(other, served)
            self._metrics.shadow.problem.set(0 if self.status["problem"] is None else 1)

    async def _try(self, other: Other, served: Manifest) -> str | None:
        """Have them compared from now on; answers why they cannot be."""
        try:
            self._take_over(other, await asyncio.to_thread(Comparison.of, served, other.manifest))
        except IncomparableError as error:
            logger.error("no shadow runs: %s", error)  # noqa: TRY400 - it is told by its reason
            return f"{other.info['name']} {other.info['version']} cannot be compared: {error}"
        except Exception as error:  # no thread or no memory to spare, which the next look may find
            logger.error("no shadow runs: unexpected %s", places(error))  # noqa: TRY400 - never the text
            self._matched = None
            return f"{other.info['name']} {other.info['version']} cannot be compared now ({type(error).__name__})"
        return None

    def _is_matched(self, other: Other, served: Manifest) -> bool:
        """Whether these very objects are: a bundle that was put there again is another."""
        return self._matched is not None and self._matched[0] is other and self._matched[1] is served

    def _take_over(self, other: Other, comparison: Comparison) -> None:
        loop = asyncio.get_running_loop()

        def report(report: Report) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._count, report)

        compare, max_size = Comparing(other, comparison, report, ROWS_AT_ONCE).compare, self._settings.queue_max
        worker = Worker(compare, size_at_once=ROWS_AT_ONCE, max_size=max_size, max_bytes=MAX_WAITING_BYTES)
        row_bytes = _FLOAT_BYTES * sum(modality.width for modality in comparison.served.features.modalities)
        self._running = _Running(other, comparison, worker, row_bytes)
        self._metrics.shadow.info.labels(**other.info).set(1)
        how = "the same arrays" if comparison.reads_alike else "its own reading of what is sent"
        logger.info("the shadow took over: %s; it scores %s", told(other.info), how)
        if other.manifest.task.outcome != comparison.served.task.outcome:
            expected, found = comparison.served.task.outcome, other.manifest.task.outcome
            logger.warning("the shadow may predict something else: expected %r as the served model, found %r", expected, found)

    def _retire(self) -> None:
        if self._running is not None:
            self._count(Report(SKIPPED, self._running.worker.stop()))
            self._metrics.shadow.info.labels(**self._running.other.info).set(0)
            self._running = None

    def offer(self, answers: Answers, *, rows: Callable[[], Arrays], unread: Unread, positions: Sequence[int]) -> None:
        """Have answers compared some time; `rows` are the arrays scored, `positions` those of their records in `unread`."""
        if (running := self._running) is None or not self._is_chosen():
            return
        try:
            taken = self._give(running, answers, rows=rows, unread=unread, positions=positions)
        except Exception as error:  # a client must not see it
            logger.error("a request could not be offered to the shadow: %s", places(error))  # noqa: TRY400 - never the text
            self._count(Report(ERROR, len(positions)))
            return
        if not taken:
            self._count(Report(SKIPPED, len(positions)))

    def _is_chosen(self) -> bool:
        self._num_requests += 1
        return self._num_requests * _GOLDEN % 2**32 < self._settings.shadow_share * 2**32

    def _give(
        self, running: _Running, answers: Answers, *, rows: Callable[[], Arrays], unread: Unread, positions: Sequence[int]
    ) -> bool:
        if running.comparison.served is not answers.manifest:  # of a model that has just been replaced
            return False
        size, alike = len(positions), running.comparison.reads_alike
        offer = Offer(Told.of(answers.output), rows if alike else unread, positions)
        return running.worker.give(Item(offer, size, size * running.row_bytes if alike else unread.num_bytes))

    def _count(self, report: Report) -> None:
        self._metrics.shadow.samples.labels(report.outcome).inc(report.size)
        if report.differences is not None:
            self._metrics.shadow.observe(report.differences)

    async def close(self) -> None:
        """Drop what waits, and begin nothing more: another model may be served at this moment."""
        running, self._other = self._running, None
        self._retire()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if running is not None:
            await asyncio.to_thread(running.worker.join)
