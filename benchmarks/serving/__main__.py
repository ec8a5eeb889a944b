"""Requests a second and latency: this service against peers that serve the same graph on the same cores.

    python -m benchmarks.serving --out DIR [--only ours,ceiling] [--concurrency 1,8,32,128] [--seconds 5] [--rounds 3]
    python -m benchmarks.serving --out DIR --bundle BUNDLE --records 64 --concurrency 1,8       # ours alone, JSON and bytes

Every server runs alone, one worker, and answers a JSON body of one record of the reference shape (13 kB); ours is asked for the
same record in bytes as well (Open Inference Protocol, 6 kB). wrk makes the load from the same cores. Rounds go through all
servers in turn; figures are medians of rounds. A peer whose package is not installed is named and left out. Ours answers with
everything (validation, warnings, explanation, metrics); the peers answer with predictions, weights and expert logits alone.
Prints a table, ratios, what a bare session.run takes, seconds to ready and resident memory; the last line is JSON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import reference
from benchmarks.serving.bodies import Body, Records, write_bodies
from benchmarks.serving.servers import PEERS, serving
from service.bundle.features import FloatArray
from service.bundle.predictor import Predictor
from service.bundle.store import open_bundle

HERE = Path(__file__).parent
SIZES = (1, 8, 32, 64)  # of a bare session.run
FIELDS = ("rps", "p50_ms", "p90_ms", "p99_ms")


def load(port: int, body: Body, concurrency: int, seconds: float, *, pause_ms: int | None = None) -> dict[str, float]:
    """Wrk's figures, and how many answers were no 200; each connection may pause after an answer, about so long."""
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(HERE / "post.lua")]
    command += [f"http://127.0.0.1:{port}{body.url}", "--", str(body.path), body.json_bytes or "-"]
    command += [] if pause_ms is None else [str(pause_ms)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(told.strip().splitlines()[-1])
    return figures


def bare_ms(predictor: Predictor, arrays: Mapping[str, FloatArray]) -> float:
    """Median milliseconds of session.run alone."""
    times = []
    for _ in range(40):
        started = time.perf_counter()
        predictor.run(dict(arrays))
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 3)


def median_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every figure; of errors the sum."""
    return {name: round(float(np.median([r[name] for r in rounds])), 3) for name in FIELDS} | {
        "errors": sum(r["errors"] for r in rounds)
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of servers, by comma")
    parser.add_argument("--bundle", type=Path, help="another model than the reference, asked for its example; peers know it not")
    parser.add_argument("--records", type=int, default=1, help="in a body")
    parser.add_argument("--concurrency", default="1,8,32,128")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime in the peers; ours has its own default")
    parser.add_argument("--port", type=int, default=3400)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed")
    return args


def main() -> None:
    args = arguments()
    bundle = open_bundle(args.bundle) if args.bundle else reference.bundle(args.out)
    records = Records.of_example(bundle, args.records) if args.bundle else Records.of_reference(args.records)
    args.out.mkdir(parents=True, exist_ok=True)
    plain, binary = write_bodies(args.out, records)
    known = [peer for peer in PEERS if peer.is_ours or not args.bundle]
    wanted = [peer for peer in known if not args.only or peer.name in args.only.split(",")]
    missing = [peer.name for peer in wanted if any(find_spec(package) is None for package in peer.needs)]
    peers = [peer for peer in wanted if peer.name not in missing]
    concurrencies = [int(c) for c in args.concurrency.split(",")]
    found: dict[str, dict[int, list[dict[str, float]]]] = {p.name: {c: [] for c in concurrencies} for p in peers}
    starts: dict[str, list[float]] = {peer.name: [] for peer in peers}
    memory: dict[str, dict[str, float]] = {}
    for number in range(args.rounds):
        for position, peer in enumerate(peers):
            with serving(peer, bundle.path, args.port + position, args.threads) as server:
                starts[peer.name].append(server.ready_s)
                body = binary if peer.in_bytes else plain
                load(server.port, body, 8, 1.0)
                for concurrency in concurrencies:
                    found[peer.name][concurrency].append(load(server.port, body, concurrency, args.seconds))
                memory[peer.name] = server.resident_mb()
            print(f"round {number + 1} of {args.rounds}: {peer.name}", file=sys.stderr, flush=True)
    medians = {name: {c: median_of(rounds) for c, rounds in by.items()} for name, by in found.items()}
    predictor = Predictor(bundle, provider="cpu", num_threads=args.threads)
    predictor.tune(max(SIZES))
    bare = {size: bare_ms(predictor, {n: np.resize(x, (size, x.shape[1])) for n, x in records.arrays.items()}) for size in SIZES}
    tell(medians, starts, memory, bare, missing)
    sizes = {"json": plain.path.stat().st_size, "bytes": binary.path.stat().st_size}
    document: dict[str, Any] = {
        "benchmark": "serving",
        "model": bundle.manifest.name,
        "records": len(records),
        "body_bytes": sizes,
        "threads": args.threads,
    }
    document |= {"rounds": args.rounds, "seconds": args.seconds, "servers": medians, "bare_ms": bare, "missing": missing}
    document |= {"ready_s": {n: round(statistics.median(s), 2) for n, s in starts.items()}, "resident_mb": memory}
    document |= {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(document | {"versions": {p: version(p) for p in ("bentoml", "onnxruntime-gpu", "starlette", "uvicorn")}}))


def tell(
    medians: Mapping[str, Mapping[int, Mapping[str, float]]],
    starts: Mapping[str, Sequence[float]],
    memory: Mapping[str, Mapping[str, float]],
    bare: Mapping[int, float],
    missing: Sequence[str],
) -> None:
    """Tables for a person."""
    print("| server | concurrency | requests/s | p50 ms | p90 ms | p99 ms | not 200 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, by in medians.items():
        for concurrency, f in by.items():
            figures = f"{f['rps']:.0f} | {f['p50_ms']:.2f} | {f['p90_ms']:.2f} | {f['p99_ms']:.2f} | {f['errors']:.0f}"
            print(f"| {name} | {concurrency} | {figures} |")
    print("\n| server | seconds to ready | resident MB, largest process | all processes |\n| --- | --- | --- | --- |")
    for name, sizes in memory.items():
        print(f"| {name} | {statistics.median(starts[name]):.2f} | {sizes['largest']:.0f} | {sizes['all']:.0f} |")
    print("\nsession.run alone, ms by batch size: " + ", ".join(f"{size}: {ms:.2f}" for size, ms in bare.items()))
    for name in missing:
        print(f"{name}: not run, its package is not installed")
    if "ours" in medians:
        for name in (n for n in medians if n != "ours"):
            ratios = [f"{c}: {medians['ours'][c]['rps'] / f['rps']:.2f}" for c, f in medians[name].items() if f["rps"]]
            print(f"ours over {name}, requests/s by concurrency: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
