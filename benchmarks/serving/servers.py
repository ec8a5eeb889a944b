"""The servers that are measured: how each is started, and when it is ready."""

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: what it needs installed, how it is started, where it is ready."""

    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    ready: str
    own_threads: bool = False  # chooses the threads of a batch by itself
    in_bytes: bool = False  # reads tensors in bytes, of the Open Inference Protocol

    @property
    def is_ours(self) -> bool:
        """Whether it is this service, however it is asked."""
        return self.command == OURS.command


def _uvicorn(app: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uvicorn", app, "--port", "{port}", "--no-access-log", "--log-level", "warning")


def _bento(service: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "bentoml", "serve", service, "--port", "{port}")


OURS = Peer("ours", (), _bento("service.api:I2MoEService"), "/readyz", own_threads=True)
PEERS = (
    OURS,
    Peer("ours in bytes", (), _bento("service.api:I2MoEService"), "/readyz", own_threads=True, in_bytes=True),
    Peer("BentoML batchable", (), _bento("benchmarks.serving.peers.bento_batchable:Batchable"), "/readyz"),
    Peer("LitServe", ("litserve",), (sys.executable, "-m", "benchmarks.serving.peers.litserve_batched"), "/health"),
    Peer("FastAPI one by one", ("fastapi",), _uvicorn("benchmarks.serving.peers.fastapi_one:app"), "/readyz"),
    Peer("ceiling", ("msgspec",), _uvicorn("benchmarks.serving.peers.ceiling:app"), "/readyz"),
)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready."""

    port: int
    ready_s: float
    process: subprocess.Popen[bytes]
    written: Path  # what it has written to standard output and error

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the server's processes, the largest first."""
        one = psutil.Process(self.process.pid)
        processes = [one, *one.children(recursive=True)]
        sizes = sorted((p.memory_info().rss / 2**20 for p in processes if p.is_running()), reverse=True)
        return {"largest": round(sizes[0], 1), "all": round(sum(sizes), 1)}


@contextmanager
def serving(peer: Peer, bundle: Path, port: int, threads: int, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The server in a process group of its own, until the block ends. `environment` adds variables."""
    with tempfile.TemporaryDirectory() as home, tempfile.NamedTemporaryFile() as log:
        own = {"I2MOE_BUNDLE": str(bundle), "PORT": str(port), "BENTOML_HOME": home}
        own |= {} if peer.own_threads else {"I2MOE_NUM_THREADS": str(threads)}
        variables = {**os.environ, **own, "BENTOML_DO_NOT_TRACK": "1", **(environment or {})}
        command = [part.format(port=port) for part in peer.command]
        started = time.monotonic()
        process = subprocess.Popen(command, env=variables, start_new_session=True, stdout=log, stderr=log)
        try:
            _wait(process, port, peer.ready)
            yield Running(port, time.monotonic() - started, process, Path(log.name))
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server stopped with status {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", path)
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"the server was not ready within {READY_S:g} s")
