"""Scoring a file against the graph alone: `python -m service.bundle predict` in rows a second, and its memory.

    python -m benchmarks.files --out DIR [--rows 16384] [--rounds 5] [--bundle BUNDLE --input TABLE.parquet]

Without --bundle: the reference model and a parquet file of random rows of its shape. Raw is the graph on rows that are arrays
already, at the batch size and the way of using threads that are fastest, for as long as a file takes: the machine's speed
changes within a second. Whole is everything of the command from file to file, its start left out. Rounds alternate; figures are
medians. Memory is the peak of a process of its own. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import reference
from benchmarks.graph import mean_ms
from service.bundle.__main__ import GARBAGE_THRESHOLD, batches_of
from service.bundle.machine import leave_garbage, usable_cpus
from service.bundle.prediction_files import write_predictions
from service.bundle.predictor import Predictor
from service.bundle.score import score
from service.bundle.store import Bundle, open_bundle
from service.bundle.table_files import count_rows

SIZES = (32, 64, 128, 256, 512)
_TURN_S = 0.2  # of one size, in the search for the fastest


def write_rows(path: Path, num_rows: int) -> None:
    """A parquet file of random rows of the reference shape."""
    generator = np.random.default_rng(0)
    columns = zip(reference.NAMES, reference.Shape().columns, strict=True)
    arrays = {name: pl.Series(name, generator.standard_normal((num_rows, width), np.float32)) for name, width in columns}
    pl.DataFrame({"id": [f"row-{i}" for i in range(num_rows)], **arrays}).write_parquet(path)


def batch_seconds(predictor: Predictor, arrays: dict[str, Any], seconds: float) -> float:
    """Seconds a row of the graph alone on the same rows again and again, for about so long."""
    predictor.run(arrays)
    return mean_ms(lambda: predictor.run(arrays), seconds) / 1000 / len(next(iter(arrays.values())))


def best_batch(predictor: Predictor, arrays: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The rows of the batch size that is fastest, by medians of short turns."""
    batches = {str(size): {name: x[:size] for name, x in arrays.items()} for size in SIZES}
    turns: dict[str, Callable[[], float]] = {
        size: partial(batch_seconds, predictor, batch, _TURN_S) for size, batch in batches.items()
    }
    seconds = alternate(turns, rounds)
    return batches[min(seconds, key=seconds.__getitem__)]


def whole_seconds(bundle: Bundle, predictor: Predictor, source: Path, out: Path) -> float:
    """Seconds a row from file to file."""
    experts = [expert.name for expert in bundle.manifest.experts]
    started = time.perf_counter()
    encoded = batches_of(source, bundle.manifest.features)
    num_rows = write_predictions(score(predictor, encoded, num_threads=usable_cpus()), out, experts)
    return (time.perf_counter() - started) / num_rows


def peak_mb(bundle: Path, source: Path, out: Path) -> float:
    """Peak resident memory of the command."""
    command = [sys.executable, "-m", "service.bundle", "predict", str(bundle), str(source), "--out", str(out)]
    code = f"import resource, subprocess; subprocess.run({command!r}, check=True, capture_output=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(told) / 1024  # Linux counts in kB


def alternate(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each, all in turn."""
    told: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            told[name].append(run())
    return {name: statistics.median(times) for name, times in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--input", type=Path)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle) if args.bundle else reference.bundle(args.out)
    source = args.input or args.out / "rows.parquet"
    if not args.input:
        write_rows(source, args.rows)
    tuned = Predictor(bundle, provider="cpu", num_threads=usable_cpus())
    tuned.tune(max(SIZES))
    first = next(iter(batches_of(source, bundle.manifest.features, num_rows=max(SIZES))))
    single = Predictor(bundle, provider="cpu")
    leave_garbage(GARBAGE_THRESHOLD)
    batch = best_batch(tuned, first.arrays, args.rounds)
    raw_s = (count_rows(source) or args.rows) * batch_seconds(tuned, batch, 1.0)
    work: dict[str, Callable[[], float]] = {"raw": partial(batch_seconds, tuned, batch, raw_s)}
    for suffix in ("parquet", "jsonl"):
        work[suffix] = partial(whole_seconds, bundle, single, source, args.out / f"predictions.{suffix}")
    seconds = alternate(work, args.rounds)
    memory = peak_mb(bundle.path, source, args.out / "predictions.parquet")
    raw = seconds.pop("raw")
    document: dict[str, Any] = {"benchmark": "files", "model": bundle.manifest.name, "rounds": args.rounds}
    document |= {
        "raw_rows_per_s": round(1 / raw),
        "raw_batch": len(next(iter(batch.values()))),
        "peak_mb": round(memory),
        "input_mb": round(source.stat().st_size / 2**20),
    }
    print(f"   graph: {1 / raw:8.0f} rows a second")
    for suffix, whole in seconds.items():
        print(f"{suffix:>8}: {1 / whole:8.0f} rows a second, {raw / whole:.0%} of the graph alone")
        document[suffix] = {"rows_per_s": round(1 / whole), "share": round(raw / whole, 3)}
    print(f"  memory: {memory:.0f} MB at most, input {source.stat().st_size / 2**20:.0f} MB")
    document |= {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(document | {"versions": {p: version(p) for p in ("pyarrow", "onnxruntime-gpu", "numpy")}}))


if __name__ == "__main__":
    main()
