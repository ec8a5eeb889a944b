"""What the service loses under overload, killed workers, changing bundles, clients that leave or stall, and when it is stopped.

    python -m benchmarks.reliability --out DIR [--only overload,kill] [--seconds 600]

The service runs the reference shape on all cores but the last, from which the load comes: neither takes the time of the other.
Bodies are one record of 12.5 kB. Peak is what 32 clients get that ask as soon as they are answered; overload offers three times
that at random times, the other faults happen at half of it. Every request is accounted for. Prints a table and JSON.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from benchmarks import reference
from benchmarks.serving.bodies import Records, write_bodies
from benchmarks.serving.servers import OURS, Running, serving

_PEAK_S = 20.0
_NUM_CLIENTS = 32
_NUM_HALF = 256  # at half of the peak
_NUM_CROWD = 2048  # clients that are there in overload
_KILL_EVERY_S = 20.0
_BUNDLE_EVERY_S = 2.0
_NUM_STALLED = 500
_HALVES = (b"POST /predict HTTP/1.1\r\nHost: t", b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 99\r\n\r\n{", b"")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every scenario needs."""

    bundle: Path
    body: Path
    port: int
    seconds: float

    @contextmanager
    def service(self, bundle: Path | None = None, **settings: str) -> Iterator[Running]:
        """The service on its cores."""
        peer = replace(OURS, command=("taskset", "-c", _service_cores(), *OURS.command))
        with serving(
            peer, bundle or self.bundle, self.port, 1, {f"I2MOE_{name}": value for name, value in settings.items()}
        ) as it:
            yield it

    def begin_load(self, seconds: float, **options: float) -> "subprocess.Popen[str]":
        """Start asking, from the last core."""
        core = str(max(psutil.Process().cpu_affinity()))
        command = ["taskset", "-c", core, sys.executable, "-m", "benchmarks.reliability.load", "--port", str(self.port)]
        command += ["--body", str(self.body), "--seconds", str(seconds)]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def load(self, seconds: float, **options: float) -> dict[str, Any]:
        """The account of a load that has ended."""
        return account(self.begin_load(seconds, **options))

    def peak(self) -> float:
        """Answers a second that clients get who never leave it without work."""
        return float(self.load(_PEAK_S, clients=_NUM_CLIENTS)["good_per_s"])


def _service_cores() -> str:
    return ",".join(map(str, sorted(psutil.Process().cpu_affinity())[:-1]))


def account(load: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a load tells at its end."""
    told, _ = load.communicate()
    if load.returncode:
        raise RuntimeError(f"the load stopped with status {load.returncode}")
    found: dict[str, Any] = json.loads(told)
    return found


def workers(server: Running) -> list[psutil.Process]:
    """The serving processes."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if "_bentoml_impl.worker.service" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:  # killed a moment ago
            continue
    return found


def metric(port: int, series: str) -> float:
    """One series of /metrics; 0 where it does not exist."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} "))


def overload(bench: Bench) -> dict[str, Any]:
    """Three times what it can take."""
    with bench.service() as server:
        before = bench.peak()
        (worker,) = workers(server)
        load, sizes, give_up = (
            bench.begin_load(bench.seconds, rate=3 * before, clients=_NUM_CROWD),
            [],
            time.monotonic() + bench.seconds,
        )
        while time.monotonic() < give_up:
            time.sleep(min(5.0, bench.seconds / 10))
            sizes.append(worker.memory_info().rss / 2**20)
        told = account(load)
        after = bench.peak()
    settled = sizes[len(sizes) // 10 :]
    peak = (before + after) / 2
    return told | {
        "peak_per_s": [before, after],
        "goodput_of_peak": round(told["good_per_s"] / peak, 3),
        "worst_10_s_of_peak": round(_worst(told["good_by_second"], 10) / peak, 3),
        "resident_mb": {"settled": round(settled[0], 1), "end": round(settled[-1], 1), "most": round(max(settled), 1)},
    }


def proxy(bench: Bench) -> dict[str, Any]:
    """The same behind nginx, on the service's cores, which refuses what is too much (deploy/proxy/nginx.conf, without TLS)."""
    if (found := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")) is None:
        return {"missing": "nginx is not installed"}
    with tempfile.TemporaryDirectory() as folder, bench.service():
        before = bench.peak()
        behind = replace(bench, port=bench.port + 1)
        configuration = _without_tls(Path(folder), service_port=bench.port, port=behind.port)
        user = " user root;" if os.geteuid() == 0 else ""
        command = ["taskset", "-c", _service_cores(), found, "-c", str(configuration), "-e", "stderr", "-g", f"daemon off;{user}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1.0)
            through = behind.peak()
            told = account(behind.begin_load(bench.seconds, rate=3 * before, clients=_NUM_CROWD))
            through_after = behind.peak()
        finally:
            process.terminate()
            process.wait(20)
        after = bench.peak()
    peak = (through + through_after) / 2
    return told | {
        "peak_per_s": [through, through_after],
        "peak_without_proxy_per_s": [before, after],
        "goodput_of_peak": round(told["good_per_s"] / peak, 3),
        "worst_10_s_of_peak": round(_worst(told["good_by_second"], 10) / peak, 3),
    }


def _without_tls(folder: Path, *, service_port: int, port: int) -> Path:
    """The project's configuration for these ports, in plain HTTP: what TLS costs is the load's as well."""
    text = (Path(__file__).parents[2] / "deploy" / "proxy" / "nginx.conf").read_text()
    text = "\n".join(line for line in text.splitlines() if "ssl_" not in line)
    replaced = {
        "listen 8443 ssl": f"listen 127.0.0.1:{port}",
        "127.0.0.1:3000": f"127.0.0.1:{service_port}",
        "/tmp/": f"{folder}/",  # noqa: S108 - a part of that file
    }
    for old, new in replaced.items():
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


def _worst(by_second: list[int], width: int) -> float:
    """The lowest mean of so many seconds in a row."""
    width = min(width, len(by_second))
    return min(sum(by_second[i : i + width]) / width for i in range(len(by_second) - width + 1))


def kill(bench: Bench) -> dict[str, Any]:
    """One of two workers is killed by SIGKILL again and again."""
    killed = 0
    with bench.service(WORKERS="2") as server:
        rate = bench.peak() / 2
        give_up = time.monotonic() + bench.seconds / 4
        load = bench.begin_load(bench.seconds / 4, rate=rate, clients=_NUM_HALF)
        while time.monotonic() < give_up - _KILL_EVERY_S:
            time.sleep(_KILL_EVERY_S / 2)
            workers(server)[0].kill()
            killed += 1
            time.sleep(_KILL_EVERY_S / 2)
        return account(load) | {"killed": killed, "workers_at_the_end": len(workers(server)), "rate": round(rate, 1)}


def bundles(bench: Bench) -> dict[str, Any]:
    """Another bundle every two seconds, every second one of them damaged."""
    folder = bench.bundle.parent / "bundles"
    shutil.rmtree(folder, ignore_errors=True)
    _add_bundle(bench.bundle, folder, 0)
    with bench.service(folder, WATCH_S="0.5"):
        rate = bench.peak() / 2
        give_up, number = time.monotonic() + bench.seconds / 4, 0
        load = bench.begin_load(bench.seconds / 4, rate=rate, clients=_NUM_HALF)
        while time.monotonic() < give_up - _BUNDLE_EVERY_S:
            time.sleep(_BUNDLE_EVERY_S)
            number += 1
            _add_bundle(bench.bundle, folder, number)
        told = account(load)
        outcomes = {name: metric(bench.port, f'i2moe_reloads_total{{outcome="{name}"}}') for name in ("done", "failed")}
    return told | {"bundles": number, "reloads": outcomes, "rate": round(rate, 1)}


def _add_bundle(source: Path, folder: Path, number: int) -> None:
    """A copy that was created later; odd ones lack the second half of their graph."""
    staged = folder / f".{number}"
    shutil.copytree(source, staged)
    manifest = json.loads((staged / "manifest.json").read_text())
    manifest |= {"version": f"1.0.{number}", "created": f"2026-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00"}
    (staged / "manifest.json").write_text(json.dumps(manifest))
    if number % 2:
        os.truncate(staged / "model.onnx", (staged / "model.onnx").stat().st_size // 2)
    staged.rename(folder / str(number))


def clients(bench: Bench) -> dict[str, Any]:
    """A third of the clients hang up at once, and hundreds send half a request and no more."""
    with bench.service() as server, ExitStack() as stalled:
        rate = bench.peak() / 2
        alone = bench.load(bench.seconds / 20, rate=rate, clients=_NUM_HALF)
        load = bench.begin_load(bench.seconds / 4, rate=rate, clients=_NUM_HALF, leave=1 / 3)
        for number in range(_NUM_STALLED):
            connection = stalled.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            connection.sendall(_HALVES[number % len(_HALVES)])
        told = account(load)
        counted = metric(bench.port, 'i2moe_request_duration_seconds_count{route="/predict",status="499"}')
    return told | {
        "stalled": _NUM_STALLED,
        "rate": round(rate, 1),
        "not_computed": counted,
        "alone_ms": alone["latency_ms"]["200"],
    }


def stop(bench: Bench) -> dict[str, Any]:
    """SIGTERM at half of the peak, five times; `begun` is what the service itself says that it has answered or left."""
    ends = []
    for _ in range(5):
        with bench.service(ACCESS_LOG="true") as server:
            rate = float(bench.load(5.0, clients=_NUM_CLIENTS)["good_per_s"]) / 2
            begun = _num_begun(server)
            load = bench.begin_load(6.0, rate=rate, clients=_NUM_HALF)
            time.sleep(4.0)
            server.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            status = server.process.wait(60)
            told = {"exit_s": round(time.monotonic() - started, 2), "status": status, **account(load)["outcomes"]}
            ends.append(told | {"begun": _num_begun(server) - begun})
    return {"ends": ends}


def _num_begun(server: Running) -> int:
    return server.written.read_text(errors="replace").count(" POST /predict ")


SCENARIOS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "overload": overload,
    "proxy": proxy,
    "kill": kill,
    "bundles": bundles,
    "clients": clients,
    "stop": stop,
}


def tell(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A table for a person."""
    columns = ("offered", "200", "503", "504", "left", "lost", "unheard", "unanswered", "wrong")
    print(f"| scenario | {' | '.join(columns)} | p50 ms | p99 ms |\n|{' --- |' * (len(columns) + 3)}")
    for name, told in found.items():
        if "outcomes" in told:
            figures = {**told["outcomes"], **{key: told[key] for key in ("offered", "unanswered", "wrong")}}
            waits = told["latency_ms"]["200"]
            row = [str(figures.get(column, 0)) for column in columns]
            print(f"| {name} | {' | '.join(row)} | {waits['p50']:.0f} | {waits['p99']:.0f} |")
    for name, told in found.items():
        extra = {key: value for key, value in told.items() if key not in ("outcomes", "good_by_second")}
        print(f"{name}: {json.dumps(extra)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="names of scenarios, by comma")
    parser.add_argument("--seconds", type=float, default=600.0, help="of overload; the others take a quarter of it")
    parser.add_argument("--port", type=int, default=3450)
    args = parser.parse_args()
    bundle = reference.bundle(args.out)
    plain, _ = write_bodies(args.out, Records.of_reference())
    bench = Bench(bundle.path, plain.path, args.port, args.seconds)
    found = {}
    for name in args.only.split(","):
        print(f"{name}: {SCENARIOS[name].__doc__}", file=sys.stderr, flush=True)
        found[name] = SCENARIOS[name](bench)
    tell(found)
    document: dict[str, Any] = {"benchmark": "reliability", "seconds": args.seconds, "scenarios": found}
    document |= {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(document | {"versions": {p: version(p) for p in ("bentoml", "onnxruntime-gpu", "uvicorn")}}))


if __name__ == "__main__":
    main()
