"""The load of the reliability benchmark keeps account of every request, whatever becomes of it."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.reliability import __main__ as reliability
from benchmarks.reliability.load import Load

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[bool]]  # the number of a request -> whether the connection stays


def response(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def play(answer: Answer, use: Callable[[Load], Awaitable[None]], *, leave: float = 0.0) -> Load:
    """Load a server that answers as told."""

    async def main() -> Load:
        numbers = iter(range(1_000_000))
        serving: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(2)
                    if not await answer(next(numbers), writer):
                        break
            except (EOFError, OSError):
                pass
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        load = Load(server.sockets[0].getsockname()[1], b"{}", leave=leave)
        async with server:
            await use(load)
            await asyncio.sleep(0.1)  # for connections that were made and left at the very end
            await asyncio.gather(*serving)
        return load

    return asyncio.run(main())


async def well(_: int, writer: asyncio.StreamWriter) -> bool:
    writer.write(response(200, b'{"probability":0.25}'))
    return True


def test_answers_are_counted_by_status_and_compared() -> None:
    """Refusals apart from answers; an answer with another probability than the first is wrong."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        told = [response(200, b'{"probability":0.25}'), response(503, b"{}"), response(200, b'{"probability":0.5}')]
        writer.write(told[number % 3])
        return True

    account = play(answer, lambda load: load.by_clients(1, 0.3)).account
    outcomes = account.outcomes
    assert set(outcomes) == {"200", "503"}
    assert account.offered == outcomes.total()
    assert 0 < account.wrong == pytest.approx(outcomes["200"] / 2, abs=1)
    assert len(account.latencies_ms["503"]) == outcomes["503"]


def test_at_a_rate_requests_wait_for_a_client_and_their_time_counts() -> None:
    """One client and answers of 20 ms at 100 a second: those that wait are asked later, and none is forgotten."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.02)
        return await well(number, writer)

    account = play(answer, lambda load: load.at_rate(100, 1, 0.5)).account
    assert account.outcomes == {"200": account.offered}
    assert max(account.latencies_ms["200"]) > 100


def test_what_is_hung_up_on_is_lost() -> None:
    """Every fifth request: lost where the connection had been answered before, unheard where it never had."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        return number % 5 != 4 and await well(number, writer)

    outcomes = play(answer, lambda load: load.by_clients(1, 0.3)).account.outcomes
    assert outcomes["lost"] == pytest.approx(outcomes["200"] / 4, abs=1)

    async def gone(_: int, writer: asyncio.StreamWriter) -> bool:
        del writer
        return False

    outcomes = play(gone, lambda load: load.by_clients(1, 0.1)).account.outcomes
    assert set(outcomes) == {"unheard"}


def test_clients_that_leave_are_counted_as_such() -> None:
    """Half of them, at once; others take their place."""
    account = play(well, lambda load: load.at_rate(200, 2, 0.5), leave=0.5).account
    assert account.outcomes["left"] > 20
    assert account.outcomes["200"] > 20
    assert account.outcomes.total() == account.offered


def test_bundles_are_added_whole_or_damaged(tmp_path: Path) -> None:
    """Even ones as they are but newer; odd ones with half a graph."""
    source = tmp_path / "bundle"
    source.mkdir()
    (source / "manifest.json").write_text('{"version": "1.0.0", "created": "2025-01-01T00:00:00+00:00"}')
    (source / "model.onnx").write_bytes(b"x" * 100)
    for number in (0, 1, 61):
        reliability._add_bundle(source, tmp_path / "bundles", number)
    created = [json.loads((tmp_path / "bundles" / n / "manifest.json").read_text())["created"] for n in ("0", "1", "61")]
    assert created == sorted(created)
    assert [(tmp_path / "bundles" / n / "model.onnx").stat().st_size for n in ("0", "1", "61")] == [100, 50, 50]


def test_the_worst_stretch_is_found() -> None:
    """The lowest mean of so many seconds in a row, or of all where there are fewer."""
    assert reliability._worst([9, 9, 1, 2, 9], 2) == 1.5
    assert reliability._worst([4, 2], 10) == 3
