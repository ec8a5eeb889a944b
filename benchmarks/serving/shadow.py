"""What a shadow costs those that are served: the same service without one, with one, and with one for a tenth of the requests.

    python -m benchmarks.serving.shadow --out DIR [--seconds 3] [--rounds 10]

All are started at once and loaded in turn, in short windows whose order moves on with every round, so that whatever else the
machine does falls on all of them alike. The shadow is the served bundle itself. wrk posts JSON of one record of the reference
shape (13 kB) from the same cores: from 32 connections without a pause; from 32 that pause 35 ms after each answer, about half of
what two cores can do; and from 4 that do. Prints medians of windows, ratios to the service without a shadow as medians of rounds,
CPU time of all the service's processes per request, and what became of samples in the shadow; the last line is JSON.
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks import reference
from benchmarks.serving.__main__ import load
from benchmarks.serving.bodies import Body, Records, write_bodies
from benchmarks.serving.servers import OURS, Running, serving

PAUSE_MS = 35
LOADS = {"full": (32, None), "half": (32, PAUSE_MS), "light": (4, PAUSE_MS)}  # connections, pause
NONE = "no shadow"
SHARES = {NONE: None, "shadow": "1", "a tenth": "0.1"}
FIGURES = ("rps", "p50_ms", "p90_ms", "p99_ms", "cpu_us")
_SETTLE_S = 0.2  # in which the shadow catches up with a window's last requests
_OUTCOME = re.compile(r'i2moe_shadow_samples_total\{outcome="(\w+)"\} (\S+)')

Window = dict[str, float]


def settings(share: str | None, bundle: Path) -> dict[str, str]:
    """The service's variables."""
    return {} if share is None else {"I2MOE_SHADOW_BUNDLE": str(bundle), "I2MOE_SHADOW_SHARE": share}


def cpu_s(server: Running) -> float:
    """CPU time of all the server's processes so far."""
    one = psutil.Process(server.process.pid)
    return float(sum(sum(p.cpu_times()[:2]) for p in (one, *one.children(recursive=True))))


def outcomes(server: Running) -> dict[str, float]:
    """Samples in the shadow so far, by what became of them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        return {outcome: float(count) for outcome, count in _OUTCOME.findall(answer.read().decode())}


def window(server: Running, body: Body, name: str, seconds: float) -> Window:
    """Load one server for a while."""
    connections, pause_ms = LOADS[name]
    counts, before_s = outcomes(server), cpu_s(server)
    found = load(server.port, body, connections, seconds, pause_ms=pause_ms)
    found["cpu_us"] = 1e6 * (cpu_s(server) - before_s) / max(1.0, found["rps"] * seconds)
    time.sleep(_SETTLE_S)
    return found | {outcome: count - counts[outcome] for outcome, count in outcomes(server).items()}


def wait_for_shadow(server: Running) -> None:
    """Until its shadow, if any, is compared."""
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/model") as answer:
            shadow = json.load(answer)["shadow"]
        if shadow is None or shadow["problem"] is None:
            return
        time.sleep(0.05)


def measure(servers: Mapping[str, Running], body: Body, *, rounds: int, seconds: float) -> dict[tuple[str, str], list[Window]]:
    """Windows by load and server, one a round."""
    found: dict[tuple[str, str], list[Window]] = {(name, server): [] for name in LOADS for server in servers}
    for number in range(rounds):
        for name in LOADS:
            first = number % len(servers)
            for server in (*list(servers)[first:], *list(servers)[:first]):
                found[name, server].append(window(servers[server], body, name, seconds))
    return found


def summary(windows: Sequence[Window], base: Sequence[Window]) -> dict[str, Any]:
    """Medians of windows, medians of the ratios to the windows of the same rounds, and sums of outcomes."""
    told: dict[str, Any] = {name: round(statistics.median(w[name] for w in windows), 2) for name in FIGURES}
    ratios = {name: [w[name] / b[name] for w, b in zip(windows, base, strict=True)] for name in FIGURES}
    told["ratios"] = {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    for outcome in ("compared", "skipped", "invalid", "error", "errors"):
        told[outcome] = int(sum(w[outcome] for w in windows))
    return told


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.shadow", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--port", type=int, default=3440)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    bundle = reference.bundle(args.out)
    body, _ = write_bodies(args.out, Records.of_reference())
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(OURS, bundle.path, args.port + position, 1, settings(share, bundle.path)))
            for position, (name, share) in enumerate(SHARES.items())
        }
        for server in servers.values():
            wait_for_shadow(server)
            load(server.port, body, 8, 1)
        found = measure(servers, body, rounds=args.rounds, seconds=args.seconds)
        memory = {name: server.resident_mb()["largest"] for name, server in servers.items()}
    told = {name: {server: summary(found[name, server], found[name, NONE]) for server in servers} for name in LOADS}
    tell(told)
    document: dict[str, Any] = {"benchmark": "shadow", "loads": told, "resident_mb": memory, "rounds": args.rounds}
    document |= {"seconds": args.seconds, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    print(json.dumps(document | {"machine": platform.machine(), "python": platform.python_version()}))


def tell(told: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """A table for a person; in brackets the ratio to the service without a shadow."""
    print("| load | service | requests/s | p50 ms | p90 ms | p99 ms | CPU us a request | compared | skipped | not 200 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, by in told.items():
        for server, found in by.items():
            figures = " | ".join(f"{found[figure]:.5g} ({found['ratios'][figure]:.2f})" for figure in FIGURES)
            print(f"| {name} | {server} | {figures} | {found['compared']} | {found['skipped']} | {found['errors']} |")


if __name__ == "__main__":
    main()
