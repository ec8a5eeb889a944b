"""The training step: ours, as `python -m training fit` takes it, against the released code's on the same shape.

    I2MOE_RELEASED_CODE=/path/to/I2MoE python -m benchmarks.training_step [--threads 2] [--batch 32] [--rounds 7] [--profile]

Ours is everything of a step: rows picked, encoders, n + 1 passes of n + 2 experts, losses, backward, clipping, optimiser,
weight average, schedule. Theirs is the body of the released loop without its data loader: encoders, passes, losses, backward,
Adam. Both are float32 with dropout 0.5; the released attention also drops attention weights and its projection (two masks of
five in a layer), which our layers do not have. Rounds alternate; a round is the mean of some steps, the figure the median of
rounds. Without a copy of the released code only ours runs, and the answer says so. The last line is JSON.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.reference import CLASS_WEIGHTS, INTERACTION_WEIGHT, Shape, dataset, recipe, rows
from benchmarks.released import ENVIRONMENT, Released, released_folder
from training.run import make_trainer
from training.trainer import Trainer


def our_steps(trainer: Trainer[Any]) -> Callable[[], None]:
    """An epoch of ours, the next in each call."""
    epochs = itertools.count()

    def run() -> None:
        trainer.take_steps(next(epochs))

    return run


def their_steps(shape: Shape, folder: Path, batch_size: int, num_steps: int) -> Callable[[], None]:
    """As many steps of the released loop."""
    model = Released(shape, folder).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss(torch.tensor(CLASS_WEIGHTS))
    inputs, labels = rows(shape, batch_size)

    def run() -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            logits_BC, interaction = model.losses(inputs)
            (criterion(logits_BC, labels) + INTERACTION_WEIGHT * interaction).backward()
            optimizer.step()

    return run


def alternate(work: dict[str, Callable[[], None]], rounds: int, num_steps: int) -> dict[str, list[float]]:
    """Milliseconds of a step in every round, all in turn; the first round warms up and is not told."""
    told: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if number:
                told[name].append(1000 * (time.perf_counter() - started) / num_steps)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of ours")
    parser.add_argument("--profile", action="store_true", help="print where our step's time goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape, folder = Shape(), released_folder()
    with tempfile.TemporaryDirectory() as run:
        data = dataset(shape, args.batch * args.steps)
        trainer = make_trainer(recipe(shape, {"batch_size": args.batch, "precision": args.precision}), data, Path(run))
        work = {"ours": our_steps(trainer)}
        if folder is not None:
            work["released"] = their_steps(shape, folder, args.batch, args.steps)
        told = alternate(work, args.rounds, args.steps)
        if args.profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                work["ours"]()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
    medians = {name: statistics.median(times) for name, times in told.items()}
    for name, median in medians.items():
        print(f"{name:>9}: {median:8.1f} ms a step (rounds {min(told[name]):.1f} to {max(told[name]):.1f})")
    parameters = sum(p.numel() for p in trainer.state.model.parameters())
    document: dict[str, Any] = {"benchmark": "training_step", "batch": args.batch, "threads": args.threads, "ms": medians}
    document |= {"precision": args.precision, "parameters": parameters, "rounds": args.rounds}
    if folder is None:
        print(f"released: not run, {ENVIRONMENT} names no copy of the released code")
    else:
        document["ratio"] = medians["released"] / medians["ours"]
        print(f"    ratio: {document['ratio']:.2f}")
    document["machine"] = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    print(json.dumps(document | {"versions": {"torch": version("torch")}}))


if __name__ == "__main__":
    main()
