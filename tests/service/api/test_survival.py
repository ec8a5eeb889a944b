"""What the real process survives: a killed worker, more load than it can take, clients that stall, leave or send nonsense."""

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving import Connection, Server, running_server
from tests.tiny_bundle import EXAMPLE_RISK, tiny_example, write_tiny_bundle

pytestmark = pytest.mark.slow
_NUM_CLIENTS = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that is easily overloaded."""
    folder = tmp_path_factory.mktemp("survival")
    settings = {"I2MOE_QUEUE_MAX": "64", "I2MOE_MAX_INSTANCES": "64", "I2MOE_MAX_BATCH_SIZE": "8"}
    with running_server(write_tiny_bundle(folder / "bundle").path, folder / "server", environment=settings) as server:
        yield server


def workers(server: Server) -> list[psutil.Process]:
    """The serving processes that are alive."""
    return [child for child in psutil.Process(server.process.pid).children(recursive=True) if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "_bentoml_impl.worker.service" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # killed and gone, or not yet waited for by its parent
        return False


def is_well(server: Server) -> bool:
    """Ready, and answering as by hand."""
    answer = server.post("/predict", tiny_example())
    return answer.status_code == 200 and answer.json()["predictions"][0]["probability"] == EXAMPLE_RISK


async def ask_again_and_again(server: Server, until: float, told: Counter[str]) -> None:
    """Post the example; a lost connection is counted and made anew."""
    while time.monotonic() < until:
        try:
            connection = await Connection.open(server)
        except OSError:
            told["refused connection"] += 1
            await asyncio.sleep(0.02)
            continue
        with contextlib.suppress(OSError, EOFError):
            while time.monotonic() < until:
                status, _ = await connection.post("/predict", tiny_example())
                told[str(status)] += 1
            connection.close()
            return
        told["lost"] += 1
        connection.close()


def test_a_killed_worker_takes_only_its_own_requests_with_it(tmp_path: Path) -> None:
    """With two workers: SIGKILL loses at most what each of its clients had in flight; the worker comes back."""
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    told: Counter[str] = Counter()

    async def scenario(server: Server) -> None:
        until = time.monotonic() + 8
        clients = [asyncio.create_task(ask_again_and_again(server, until, told)) for _ in range(_NUM_CLIENTS)]
        await asyncio.sleep(2)
        (victim, *_) = workers(server)
        victim.kill()
        await asyncio.gather(*clients)

    with running_server(bundle, tmp_path / "server", environment={"I2MOE_WORKERS": "2"}) as server:
        before = {worker.pid for worker in workers(server)}
        asyncio.run(scenario(server))
        give_up = time.monotonic() + 30
        while len(workers(server)) < 2 and time.monotonic() < give_up:
            time.sleep(0.1)
        after = {worker.pid for worker in workers(server)}
        assert (len(before), len(after), len(before & after)) == (2, 2, 1)
        assert is_well(server)
    assert told["200"] > 100
    assert told["lost"] <= _NUM_CLIENTS
    assert set(told) <= {"200", "lost", "503"}, told  # 503: the new worker had not yet loaded its model


def test_more_than_it_can_take_is_refused_quickly_and_the_rest_is_answered(server: Server) -> None:
    """Far more clients than the queue holds: 200 or 503 with Retry-After and nothing else, memory stays, and then all is well."""
    (worker,) = workers(server)
    told: Counter[int] = Counter()
    retry_after: set[str] = set()

    async def client(until: float) -> None:
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        body = json.dumps({"instances": [tiny_example()] * 8}).encode()
        request = f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        while time.monotonic() < until:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            status = int(head.split()[1])
            told[status] += 1
            if status == 503:
                retry_after.add(head.partition("retry-after: ")[2].partition("\r\n")[0])
        writer.close()

    async def overload(seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*[client(until) for _ in range(100)])

    asyncio.run(overload(1.0))
    before = worker.memory_info().rss
    asyncio.run(overload(4.0))
    assert set(told) == {200, 503}
    assert told[200] > 20
    assert retry_after == {"1"}
    assert worker.memory_info().rss - before < 20 << 20
    assert is_well(server)


HALVES = (
    b"POST /predict HTTP/1.1\r\nHost: t",
    b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 99\r\n\r\n{",
    b"",
)


def test_clients_that_stall_do_not_hold_up_others(server: Server) -> None:
    """A hundred that send half a head, half a body or nothing at all."""
    host, port = server.url.removeprefix("http://").split(":")
    stalled = []
    for i in range(100):
        connection = socket.create_connection((host, int(port)), timeout=5)
        connection.sendall(HALVES[i % len(HALVES)])
        stalled.append(connection)
    assert all(is_well(server) for _ in range(20))
    for connection in stalled:
        connection.close()
    assert is_well(server)


def test_clients_that_leave_are_not_computed(server: Server) -> None:
    """Hundreds that hang up before their answer: within seconds the queue is empty, and the next is answered."""
    left, scored = 'i2moe_request_duration_seconds_count{route="/predict",status="499"}', 'i2moe_samples_total{outcome="ok"}'
    before = server.metric(left, absent=0.0), server.metric(scored, absent=0.0)
    body = json.dumps({"instances": [tiny_example()] * 8}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(300):
        connection = socket.create_connection((host, int(port)), timeout=5)
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.close()
    give_up = time.monotonic() + 10
    while server.metric("i2moe_queue_depth") and time.monotonic() < give_up:
        time.sleep(0.05)
    num_left, num_scored = server.metric(left, absent=0.0) - before[0], server.metric(scored, absent=0.0) - before[1]
    assert server.metric("i2moe_queue_depth") == 0
    assert num_left > 0
    assert num_scored <= 8 * (300 - num_left)
    assert is_well(server)


NONSENSE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 200,
    "a negative length": b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{}{}{}{}",
    "a length that is no number": b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: \xc2\xb2\r\n\r\n",
    "a chunk of no size": b"POST /predict HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two kinds of length": b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a path of bytes": b"GET /\xff\xfe%00%2e%2e/metrics HTTP/1.1\r\nHost: t\r\n\r\n",
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_and_forgotten(server: Server, sent: bytes) -> None:
    """An answer of 4xx or a closed connection, never a 5xx, never a process that dies."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        connection.settimeout(3)
        answer = b""
        with contextlib.suppress(OSError):
            answer = connection.recv(4096)
    assert not answer or answer.split()[1][:1] == b"4", answer[:100]
    assert is_well(server)


@pytest.mark.parametrize("length", [b"Content-Length: 52428800", b"Transfer-Encoding: chunked"])
def test_fifty_megabytes_are_refused_without_being_kept(server: Server, length: bytes) -> None:
    """413 whether or not their length is told before, and the process does not grow by them."""
    host, port = server.url.removeprefix("http://").split(":")
    (worker,) = workers(server)
    before = worker.memory_info().rss
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: t\r\n" + length + b"\r\n\r\n")
        piece = b" " * (1 << 20)
        with contextlib.suppress(OSError):  # the service may hang up before all is sent
            for _ in range(50):
                connection.sendall(b"100000\r\n" + piece + b"\r\n" if b"chunked" in length else piece)
        answer = connection.recv(4096)
    assert answer.split()[1] == b"413", answer[:200]
    assert b"BODY_TOO_LARGE" in answer
    assert worker.memory_info().rss - before < 20 << 20
    assert is_well(server)


DOCUMENTS = {
    "duplicate keys": (b'{"labs": {"crea": 1}, "labs": {"crea": 4}}', {200, 400, 422}),
    "deep": (b'{"instances": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", {400}),
    "wide": (json.dumps({"labs": {f"f{i}": i for i in range(20_000)}}).encode(), {422}),
    "long key": (json.dumps({"labs": {"k" * 500_000: 1}}).encode(), {422}),
    "a million zeros": (b'{"labs": {"crea": 1' + b"0" * 1_000_000 + b"}}", {400, 422}),
    "null bytes": (b"\0" * 1000, {400}),
}


@pytest.mark.parametrize(("body", "statuses"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_documents_that_are_meant_to_hurt_are_answered_soon(server: Server, body: bytes, statuses: set[int]) -> None:
    """Within the deadline, in the one shape of errors."""
    import httpx

    answer = httpx.post(f"{server.url}/predict", content=body, timeout=10)
    assert answer.status_code in statuses
    assert answer.status_code == 200 or set(answer.json()) == {"error", "code", "detail", "request_id"}
    assert len(answer.content) < 100_000
    assert is_well(server)
