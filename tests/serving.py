"""A real `bentoml serve` process for tests: own BENTOML_HOME, free port, captured log, stopped with its own children only."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A port nobody listens on, outside the range that systems choose from themselves (32768 up on Linux, 49152 elsewhere).

    A port of that range may be taken between this call and the server's own bind: BentoML's supervisor asks the system for two
    ports of its own before it binds the service's, and once in some thousand starts it was given that very one.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"expected a free port of {PORTS.start} to {PORTS.stop - 1}, found every one in use")


@dataclass(frozen=True)
class Server:
    """A running service."""

    url: str
    log_path: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """Everything the service has written to stdout and stderr."""
        return self.log_path.read_text(errors="replace")

    def get(self, path: str) -> httpx.Response:
        """GET `path`."""
        return httpx.get(self.url + path, timeout=10.0)

    def post(self, path: str, document: object) -> httpx.Response:
        """POST a JSON document."""
        return httpx.post(self.url + path, json=document, timeout=10.0)

    def metric(self, series: str, *, absent: float | None = None) -> float:
        """One series of /metrics; `absent` where it does not exist yet, and without it a failure."""
        values = [line for line in self.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
        if not values and absent is not None:
            return absent
        (line,) = values
        return float(line.rpartition(" ")[2])

    def wait_until_status(self, path: str, status: int, *, within_s: float = START_TIMEOUT_S) -> httpx.Response:
        """GET `path` until it answers `status`; fails with the log when it never does."""
        give_up = time.monotonic() + within_s
        while time.monotonic() < give_up and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                response = httpx.get(self.url + path, timeout=2.0)
                if response.status_code == status:
                    return response
            time.sleep(0.05)
        raise AssertionError(f"{path} never answered {status}; the log:\n{self.log}")

    def terminate(self) -> int:
        """Ask the service to stop, as a container runtime does: SIGTERM to its first process. Answers the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


class Connection:
    """A keep-alive HTTP connection that posts JSON: a tenth of httpx's work, so that a test can load a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, server: Server) -> "Connection":
        """Connect."""
        host, port = server.url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def post(self, path: str, document: object) -> tuple[int, Any]:
        """Status and JSON answer; raises `OSError` or `EOFError` when the server has hung up."""
        body = json.dumps(document).encode()
        self._writer.write(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split()[1]), json.loads(await self._reader.readexactly(length))

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


@contextlib.contextmanager
def running_server(
    bundle: Path | None,
    workdir: Path,
    *,
    ready: bool = True,
    environment: Mapping[str, str] | None = None,
    inside: Sequence[str] = (),
    start_s: float = START_TIMEOUT_S,
) -> Iterator[Server]:
    """`bentoml serve service.api:I2MoEService` for `bundle`, its files under `workdir`.

    With `ready`, waits until /readyz answers 200, else until the process lives. `environment` adds variables, `inside` is a
    command that starts another one, `start_s` how long to wait.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    port, log_path = free_port(), workdir / "server.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("I2MOE_", "PROMETHEUS_"))}
    own = {"BENTOML_HOME": str(workdir / "bentoml_home"), "BENTOML_DO_NOT_TRACK": "True", "PYTHONUNBUFFERED": "1"}
    chosen = {"I2MOE_BUNDLE": str(bundle)} if bundle is not None else {}
    command = [sys.executable, "-m", "bentoml", "serve", "service.api:I2MoEService", "--host", "127.0.0.1", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*inside, *command],
            cwd=ROOT,
            env={**inherited, **own, **chosen, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, so that stopping it stops nobody else
        )
    server = Server(f"http://127.0.0.1:{port}", log_path, process)
    try:
        server.wait_until_status("/readyz" if ready else "/livez", 200, within_s=start_s)
        if ready:
            _wait_for_every_worker(server, int((environment or {}).get("I2MOE_WORKERS", "1")))
        yield server
    finally:
        _stop(process)


def _wait_for_every_worker(server: Server, num_workers: int) -> None:
    """Whoever of them is asked at /readyz answers for itself."""
    give_up = time.monotonic() + START_TIMEOUT_S
    while num_workers > 1 and server.log.count("ready after") < num_workers:
        assert time.monotonic() < give_up, f"not every worker became ready; the log:\n{server.log}"
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):  # whatever of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
