"""What it costs to tell which features drove each expert, and how much the telling leaves out.

`python -m benchmarks.attribution BUNDLE [--run RUN] [--repeats 30] [--points 4 8 16 32]`

Per batch size: milliseconds of one pass of model.onnx alone, and with attribution.onnx after it, on copies of the bundle's
example (median of the repeats, one thread). With `--run`, the run folder the bundle was exported from: for every number of
points the gap between contributions and what their attributions add up to, in the trained model, over rows drawn from the
feature schema with a tenth of the features missing. Last line JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.verify import draw_rows, hide
from service.bundle.attribution import one_hot
from service.bundle.explanation import decide
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle, open_bundle
from training.attribution.gradients import IntegratedGradients
from training.checkpoint import load_checkpoint

BATCH_SIZES = (1, 8, 32)
_NUM_ROWS, _AT_ONCE, _MISSING = 64, 8, 0.1


def median_ms(work: Callable[[], Any], repeats: int) -> float:
    times = []
    work()
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def costs(bundle: Bundle, *, repeats: int) -> list[dict[str, float]]:
    predictor, schema, task = Predictor(bundle, provider="cpu"), bundle.manifest.features, bundle.manifest.task
    row = schema.encode(bundle.manifest.example.record).arrays
    told = []
    for size in BATCH_SIZES:
        arrays = schema.stack([row] * size)

        def attributed(arrays: dict[str, Any] = arrays) -> None:
            output = predictor.run(arrays)
            predictor.attribute(arrays, one_hot(decide(output.prediction, task), len(task.labels)))

        predict_ms = median_ms(lambda arrays=arrays: predictor.run(arrays), repeats)
        told.append({"batch": size, "predict_ms": predict_ms, "with_features_ms": median_ms(attributed, repeats)})
    return told


def gaps(run: Path, points: Sequence[int]) -> list[dict[str, float]]:
    checkpoint, generator = load_checkpoint(run), np.random.default_rng(0)
    rows = hide(draw_rows(checkpoint.schema, _NUM_ROWS, generator), checkpoint.schema, _MISSING, generator)
    label = one_hot(np.full(_NUM_ROWS, len(checkpoint.task.labels) - 1), len(checkpoint.task.labels))
    inputs = [*(torch.from_numpy(rows[name]) for name in checkpoint.schema.names), torch.from_numpy(label)]
    return [gap(checkpoint, inputs, num_points) for num_points in points]


def gap(checkpoint: Any, inputs: Sequence[torch.Tensor], num_points: int) -> dict[str, float]:
    module = IntegratedGradients(checkpoint.model.eval(), checkpoint.task, num_points=num_points)
    found = [module(*parts) for parts in zip(*(x.split(_AT_ONCE) for x in inputs), strict=True)]
    gap_BE = torch.cat([part.gap_BE for part in found]).abs()
    change = torch.cat([part.contribution_BE - part.base_BE for part in found]).abs().mean().item()
    return {"points": num_points, "mean_gap": gap_BE.mean().item(), "max_gap": gap_BE.max().item(), "mean_change": change}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attribution", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--run", type=Path, help="run folder of the same model, for the gap by number of points")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--points", type=int, nargs="+", default=[4, 8, 16, 32])
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    if bundle.manifest.attribution is None:
        parser.error(f"{args.bundle} has no attribution graph: {bundle.manifest.attribution_left_out or 'none was asked for'}")
    told: dict[str, Any] = {"bundle": bundle.manifest.name, "points": bundle.manifest.attribution.num_points}
    told["bytes"] = {name: info.bytes for name, info in bundle.manifest.files.items()}
    told["cost"] = costs(bundle, repeats=args.repeats)
    for row in told["cost"]:
        print(f"batch {row['batch']:>3}: predict {row['predict_ms']:8.2f} ms, with features {row['with_features_ms']:8.2f} ms")
    told["gap"] = gaps(args.run, args.points) if args.run else []
    for row in told["gap"]:
        print(
            "points {points:>3}: gap mean {mean_gap:.2e}, max {max_gap:.2e}, of a mean change of {mean_change:.2e}".format(**row)
        )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
