"""How the graph's cost grows: with the number of modalities, and with the batch.

    python -m benchmarks.growth --out DIR [--modalities 2-8] [--batches 1,4,16,64,256,512] [--threads 2] [--rounds 5]

The reference model with 2 to 8 modalities of 256, 768, 512, 256, ... features: one expert more for each, and longer sequences for
all. Batches are run as the service runs them. Figures are medians of rounds that go through all batches in turn. Prints a
table, leaves growth.png and growth.svg; the last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks import reference
from benchmarks.graph import LARGEST_TUNED, flops, mean_ms
from benchmarks.reference import Shape
from service.bundle.predictor import Predictor
from training.sweep import parse_seeds

_SECONDS = 0.15  # of one round of one batch size

Figures = dict[int, dict[int, float]]  # modalities -> batch -> milliseconds


def shape_of(num_modalities: int) -> Shape:
    """The reference shape with other modalities than three: their widths begin again after the third."""
    return replace(Shape(), columns=tuple(islice(cycle(Shape().columns), num_modalities)))


def measure(predictor: Predictor, shape: Shape, batches: list[int], rounds: int) -> dict[int, float]:
    """Median milliseconds of each batch size."""
    arrays = {batch: reference.arrays(shape, batch) for batch in batches}
    told: dict[int, list[float]] = {batch: [] for batch in batches}
    for _ in range(rounds):
        for batch in batches:
            told[batch].append(mean_ms(lambda batch=batch: predictor.run(arrays[batch]), _SECONDS))  # type: ignore[misc]
    return {batch: round(statistics.median(times), 3) for batch, times in told.items()}


def table(found: Figures) -> str:
    """A row for each number of modalities: milliseconds by batch, work, and microseconds a sample at the largest batch."""
    batches = list(next(iter(found.values())))
    head = ["modalities", "experts", "MFLOP a sample", *(f"batch {batch}" for batch in batches), "us a sample"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for num_modalities, by_batch in found.items():
        mflop = flops(shape_of(num_modalities)) / 1e6
        cells = [f"{num_modalities}", f"{num_modalities + 2}", f"{mflop:.1f}", *(f"{by_batch[batch]:.2f}" for batch in batches)]
        lines.append("| " + " | ".join([*cells, f"{1000 * by_batch[batches[-1]] / batches[-1]:.0f}"]) + " |")
    return "\n".join(lines)


def draw(found: Figures, folder: Path) -> None:
    """Microseconds a sample over batch size, a line for each number of modalities."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for num_modalities, by_batch in found.items():
        label = f"{num_modalities} modalities"
        axes.plot(list(by_batch), [1000 * ms / batch for batch, ms in by_batch.items()], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="microseconds a sample", title="One pass of the graph")
    axes.set_xticks(list(next(iter(found.values()))), [str(batch) for batch in next(iter(found.values()))])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"growth.{suffix}", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--modalities", default="2-8")
    parser.add_argument("--batches", default="1,4,16,64,256,512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    found: Figures = {}
    for num_modalities in parse_seeds(args.modalities):
        shape = shape_of(num_modalities)
        bundle = reference.bundle(args.out / f"modalities-{num_modalities}", shape)
        predictor = Predictor(bundle, provider="cpu", num_threads=args.threads)
        predictor.tune(LARGEST_TUNED)
        found[num_modalities] = measure(predictor, shape, batches, args.rounds)
    print(table(found))
    draw(found, args.out)
    document: Mapping[str, Any] = {"benchmark": "growth", "threads": args.threads, "rounds": args.rounds, "ms": found}
    document = {**document, "cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({**document, "versions": {p: version(p) for p in ("onnxruntime-gpu", "torch", "onnx")}}))


if __name__ == "__main__":
    main()
