"""A shadow without a service around it: what it takes, what it skips, and how it begins and ends."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.background import NICENESS
from service.api.comparing import Other
from service.api.metrics import Metrics
from service.api.requests import Unread
from service.api.settings import Settings
from service.api.shadow import Shadow
from service.bundle.answers import Answers, Explained
from service.bundle.predictor import CPU, Predictor
from service.bundle.store import open_bundle
from tests.shadow_bundles import write_other_bundle, write_reordered_bundle
from tests.tiny_bundle import TASK, tiny_example, tiny_output

OUTCOMES = ("compared", "skipped", "invalid", "error")
EXAMPLE_ROWS = np.array([[4, 140]], np.float32), np.array([[70, 1]], np.float32)


@pytest.fixture(scope="module")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the other model's bundle."""
    return write_other_bundle(tmp_path_factory.mktemp("bundles") / "other")


@asynccontextmanager
async def watching(tiny_path: Path, other_path: Path, **options: Any) -> AsyncIterator[tuple[Shadow, Metrics, Answers]]:
    """A shadow that compares without a service, and an answer of the model that it is compared with."""
    settings, metrics = Settings(shadow_bundle=other_path, **options), Metrics()
    shadow, bundle = Shadow(settings, metrics, path=other_path), open_bundle(tiny_path)
    shadow.open()
    shadow.compare_with(bundle.manifest)
    async with asyncio.timeout(20):
        while shadow.status["problem"] is not None:
            await asyncio.sleep(0.002)
    yield shadow, metrics, Explained.of(tiny_output(*EXAMPLE_ROWS), bundle.manifest).answers()
    await shadow.close()


def give(shadow: Shadow, answers: Any, *, num_bytes: int = 0, rows: Any = None) -> None:
    unread = Unread(lambda _: [tiny_example()], num_bytes)
    arrays = dict(zip(("labs", "history"), EXAMPLE_ROWS, strict=True))
    shadow.offer(answers, rows=rows or (lambda: arrays), unread=unread, positions=[0])


def told_of(metrics: Metrics) -> dict[str, float]:
    text = metrics.render().decode()
    found = {name: text.partition(f'i2moe_shadow_samples_total{{outcome="{name}"}} ')[2] for name in OUTCOMES}
    return {name: float(rest.partition("\n")[0]) for name, rest in found.items() if not rest.startswith("0.0")}


def test_answers_of_a_model_that_was_just_replaced_are_skipped(tiny_path: Path, other_path: Path) -> None:
    """They would be compared by the wrong columns; here of an equal manifest that is another bundle's."""

    async def scenario() -> dict[str, float]:
        async with watching(tiny_path, other_path) as (shadow, metrics, _):
            give(shadow, Explained.of(tiny_output(*EXAMPLE_ROWS), open_bundle(tiny_path).manifest).answers())
            return told_of(metrics)

    assert asyncio.run(scenario()) == {"skipped": 1}


def test_what_cannot_be_offered_is_an_error_and_no_clients(tiny_path: Path, other_path: Path, caplog: Any) -> None:
    """Whatever is wrong with it."""

    async def scenario() -> dict[str, float]:
        async with watching(tiny_path, other_path) as (shadow, metrics, _):
            give(shadow, object())
            return told_of(metrics)

    assert asyncio.run(scenario()) == {"error": 1}
    assert "could not be offered to the shadow: AttributeError" in caplog.text


@pytest.mark.parametrize(("alike", "fits"), [(True, 16), (False, 100)])
def test_what_waits_is_bounded_in_bytes(tiny_path: Path, tmp_path: Path, monkeypatch: Any, alike: bool, fits: int) -> None:
    """By a sample's four columns of four bytes, or by the request's body where that is read again."""

    shadow_path = (write_other_bundle if alike else write_reordered_bundle)(tmp_path / "shadow")

    async def scenario(limit: int) -> dict[str, float]:
        monkeypatch.setattr("service.api.shadow.MAX_WAITING_BYTES", limit)
        async with watching(tiny_path, shadow_path) as (shadow, metrics, answers):
            give(shadow, answers, num_bytes=100)
            while not (told := told_of(metrics)):
                await asyncio.sleep(0.002)
            return told

    assert asyncio.run(scenario(fits)) == {"compared": 1}
    assert asyncio.run(scenario(fits - 1)) == {"skipped": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's on Linux alone")
def test_a_shadow_computes_on_the_cpu_at_low_priority(other_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the served model must have a GPU: its memory and time are the served model's."""

    async def scenario() -> Other:
        settings = Settings(shadow_bundle=other_path, provider="cuda", require_gpu=True, num_threads=4)
        return await Shadow(settings, Metrics(), path=other_path)._load(other_path)

    other = asyncio.run(scenario())
    assert other.info["provider"] == CPU
    monkeypatch.setattr(Predictor, "run", lambda *_: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert other.run({}) == NICENESS


def test_nobody_waits_for_a_bundle_that_is_being_loaded(other_path: Path) -> None:
    """However long that takes."""

    class Endless(Shadow):
        async def _load(self, path: Path) -> Other:
            await asyncio.Event().wait()
            raise AssertionError

    async def scenario() -> None:
        shadow = Endless(Settings(shadow_bundle=other_path), Metrics(), path=other_path)
        shadow.open()
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await shadow.follow(limit_s=0.01)  # nor does who asked for a look
            await shadow.close()

    asyncio.run(scenario())


def test_a_closed_shadow_begins_nothing(tiny_path: Path, other_path: Path) -> None:
    """Also where another model is served at this very moment."""

    async def scenario() -> Any:
        async with watching(tiny_path, other_path) as (shadow, _, _):
            pass
        shadow.compare_with(open_bundle(tiny_path).manifest)
        await asyncio.gather(*shadow._tasks)
        return shadow.status["model"]

    assert asyncio.run(scenario()) is None


def test_a_look_that_finds_nothing_new_changes_nothing(tiny_path: Path, other_path: Path) -> None:
    """What waits goes on waiting."""

    async def scenario() -> bool:
        async with watching(tiny_path, other_path) as (shadow, _, _):
            before = shadow._running
            await shadow.follow()
            return before is not None and shadow._running is before

    assert asyncio.run(scenario())


def test_a_shadow_is_looked_at_again_and_again(tiny_path: Path, tmp_path: Path) -> None:
    """As often as the settings say."""

    async def scenario() -> None:
        folder = tmp_path / "shadows"
        write_other_bundle(folder / "a")
        async with watching(tiny_path, folder, watch_s=0.01) as (shadow, _, _), asyncio.timeout(20):
            await asyncio.to_thread(write_other_bundle, folder / "b", version="3.0.0", created=datetime(2100, 1, 1, tzinfo=UTC))
            while (shadow.status["model"] or {}).get("version") != "3.0.0":
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_two_outcomes_in_different_words_are_a_warning(tiny_path: Path, tmp_path: Path, caplog: Any) -> None:
    """And are compared, since nobody but a person can tell whether they are one."""

    async def scenario() -> None:
        path = write_other_bundle(tmp_path / "other", task=TASK.model_copy(update={"outcome": "death within a month"}))
        async with watching(tiny_path, path):
            pass

    asyncio.run(scenario())
    assert "may predict something else" in caplog.text
    assert "'death within a month'" in caplog.text
