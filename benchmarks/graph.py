"""One pass of the graph against the released code's eager inference, on the same weights.

    I2MOE_RELEASED_CODE=/path/to/I2MoE python -m benchmarks.graph --out DIR [--batches 1,8,32,128] [--threads 2] [--rounds 7]

The released model gets random weights; `python -m export released` makes a bundle of its checkpoint, verified as any other; both
answer the same rows, and the largest difference of logits is told. Rounds alternate; a round is the mean of some passes, the
figure the median of rounds. `of_peak` is the graph's multiply-adds a second against those of a 1,024-wide matrix product in
the same run. Without a copy of the released code a model of ours of the same shape is measured alone. The last line is JSON.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reference
from benchmarks.reference import NAMES, Shape
from benchmarks.released import ENVIRONMENT, Released, released_folder
from export.bundle import export_bundle
from export.released import released_material
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle, open_bundle

_PEAK_SIZE = 1024
LARGEST_TUNED = 64  # as the service does
_SECONDS = 0.25  # of one round of one model


def flops(shape: Shape) -> float:
    """Floating-point operations of a sample's matrix products: encoders, experts, reweighting."""
    n, d, p = len(shape.columns), shape.hidden_dim, shape.num_patches
    tokens = n * p
    encoders = sum(columns * d for columns in shape.columns)
    layer = tokens * 8 * d * d + 2 * tokens * tokens * d
    expert = shape.num_layers * layer + n * d * shape.num_labels
    widths = [n * d, *[shape.reweighting_hidden] * (shape.reweighting_layers - 1), n + 2]
    reweighting = sum(a * b for a, b in itertools.pairwise(widths))
    return 2.0 * (encoders + (n + 2) * expert + reweighting)


def released_bundle(model: Released, folder: Path, shape: Shape) -> Bundle:
    """The checkpoint as the released code saves it, imported; made once and then found in `folder`."""
    checkpoint, config, out = folder / "released.pth", folder / "released.json", folder / "released-bundle"
    if out.exists():
        model.restore(torch.load(checkpoint, weights_only=True))
        return open_bundle(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.saved(NAMES), checkpoint)
    modalities = dict(zip(NAMES, shape.columns, strict=True))
    config.write_text(json.dumps({"modalities": modalities, "num_heads": shape.num_heads, "temperature_rw": 1.0}))
    return export_bundle(released_material(checkpoint, config), out)


def mean_ms(run: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Milliseconds of a call, over as many as fit into the time, three at least."""
    started, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < seconds:
        run()
        count += 1
    return 1000 * (time.perf_counter() - started) / count


def peak_gflops() -> float:
    """The best of some square matrix products, in multiply-adds counted twice."""
    a, b = torch.randn(_PEAK_SIZE, _PEAK_SIZE), torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    best = min(mean_ms(lambda: a @ b, 0.05) for _ in range(8))
    return 2 * _PEAK_SIZE**3 / best / 1e6


def measure(predictor: Predictor, model: Released | None, shape: Shape, batch: int, rounds: int) -> dict[str, float]:
    """Medians for one batch size, and how far the answers lie apart."""
    inputs, _ = reference.rows(shape, batch)
    arrays = reference.arrays(shape, batch)
    work: dict[str, Callable[[], object]] = {"graph": lambda: predictor.run(arrays)}
    if model is not None:
        work["released"] = lambda: model(inputs)
    told: dict[str, list[float]] = {name: [] for name in work}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, run in work.items():
                ms = mean_ms(run)
                if number:
                    told[name].append(ms)
        difference = float(np.abs(predictor.run(arrays).logits - model(inputs).numpy()).max()) if model is not None else None
    medians = {f"{name}_ms": round(statistics.median(times), 4) for name, times in told.items()}
    found: dict[str, Any] = {"batch": batch, **medians, "gflops": round(flops(shape) * batch / medians["graph_ms"] / 1e6, 2)}
    if difference is not None:
        found |= {"ratio": round(medians["released_ms"] / medians["graph_ms"], 2), "largest_difference": difference}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, folder = Shape(), released_folder()
    model = Released(shape, folder).eval() if folder is not None else None
    bundle = reference.bundle(args.out) if model is None else released_bundle(model, args.out, shape)
    predictor = Predictor(bundle, provider="cpu", num_threads=args.threads)
    predictor.tune(LARGEST_TUNED)
    peak = peak_gflops()
    found = [measure(predictor, model, shape, int(batch), args.rounds) for batch in args.batches.split(",")]
    peak = max(peak, peak_gflops())
    for row in found:
        row["of_peak"] = round(row["gflops"] / peak, 3)
        released = f", released {row['released_ms']:.3f} ms, ratio {row['ratio']:.2f}" if "ratio" in row else ""
        print(f"batch {row['batch']:>4}: graph {row['graph_ms']:.3f} ms ({row['of_peak']:.0%} of peak){released}")
    if model is None:
        print(f"released: not run, {ENVIRONMENT} names no copy of the released code")
    document: dict[str, Any] = {
        "benchmark": "graph",
        "threads": args.threads,
        "rounds": args.rounds,
        "peak_gflops": round(peak, 1),
    }
    document |= {
        "ways": predictor.ways,
        "batches": found,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps(document | {"versions": {p: version(p) for p in ("torch", "onnxruntime-gpu", "onnx")}}))


if __name__ == "__main__":
    main()
