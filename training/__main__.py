"""`python -m training fit RECIPE.toml --out RUN`, `evaluate RUN [--data FILE]`, `sweep RECIPE.toml --vary ... --out DIR`.

And `stability RUN OTHER ...`, which compares the explanations of runs that differ in their seed.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import RecipeError, TrainingError

if TYPE_CHECKING:
    from training.recipe import Recipe

_INTERRUPTED = 130  # the shell's exit status for Ctrl-C
_SPINS = 3000  # of a thread that waits, before it sleeps


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Trains and evaluates I2MoE models.")
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train a recipe into a run folder")
    fit.add_argument("recipe", type=Path)
    fit.add_argument("--out", type=Path, required=True, help="run folder: checkpoint.pt, metrics.json, report.html")
    fit.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    fit.add_argument("--resume", action="store_true", help="continue an interrupted run")
    evaluate = commands.add_parser("evaluate", help="metrics of a run, or of a run's model on another file")
    evaluate.add_argument("run", type=Path)
    evaluate.add_argument("--data", type=Path, help="csv, csv.gz or parquet with the label and feature columns")
    stability = commands.add_parser("stability", help="do runs that differ in their seed alone explain the same rows alike?")
    stability.add_argument("run", type=Path, help="its metrics.json takes the figures")
    stability.add_argument("others", type=Path, nargs="+", metavar="other", help="the same recipe and split, another train.seed")
    sweep = commands.add_parser("sweep", help="a grid of runs over one recipe, resumed where it stopped; one table")
    sweep.add_argument("recipe", type=Path)
    sweep.add_argument("--vary", action="append", default=[], metavar="SECTION.KEY=A,B,...", help="may be repeated")
    sweep.add_argument("--variants", type=Path, metavar="FILE.toml", help="named variants, each a table of recipe values")
    sweep.add_argument("--seeds", default="0", metavar="0,1,2 or 0-4")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    sweep.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    sweep.add_argument("--out", type=Path, required=True, help="folder of the runs, table.csv and table.html")
    return parser


def _fit(args: argparse.Namespace) -> None:
    from training.recipe import load_recipe
    from training.run import fit

    recipe = load_recipe(args.recipe, args.overrides)
    evaluations = fit(recipe, args.recipe.parent.absolute(), args.out, resume=args.resume)
    if not evaluations:  # another process tells them
        return
    _print_metrics({split: evaluation.document()["metrics"] for split, evaluation in evaluations.items()})
    print(f"run written to {args.out}: checkpoint.pt, metrics.json, report.html")
    if (test := evaluations["test"]).validity is not None:
        print(f"explanations of {test.validity.num_rows} test rows checked in {test.validity_seconds:.1f} s")


def _evaluate(args: argparse.Namespace) -> None:
    from training.checkpoint import load_checkpoint
    from training.distributed import refuse_several
    from training.evaluation import evaluate_file, read_metrics, write_metrics

    refuse_several("evaluate")
    if args.data is None:
        splits = read_metrics(args.run)["splits"]
        _print_metrics({split: document["metrics"] for split, document in splits.items()})
        return
    evaluation = evaluate_file(load_checkpoint(args.run), args.data)
    out = args.run / f"metrics-{args.data.name.split('.')[0]}.json"
    write_metrics(evaluation.document(), out)
    _print_metrics({args.data.name: evaluation.document()["metrics"]})
    print(f"written to {out}")


def _stability(args: argparse.Namespace) -> None:
    from training.distributed import refuse_several
    from training.validity.stability import compare_seeds

    refuse_several("stability")
    found = compare_seeds(args.run, args.others)
    print(f"{len(found.seeds)} runs, {found.num_rows} test rows, means over pairs of runs:")
    rows = "undefined" if found.spearman_rows is None else f"{found.spearman_rows:.3f}"
    print(f"  a row's contribution shares      rank correlation over experts {rows}")
    chance = f"({found.same_dominant_by_chance:.3f} by chance)"
    print(f"  a row's dominant expert          the same in {found.same_dominant:.3f} of rows {chance}")
    mean = "undefined" if found.spearman_mean is None else f"{found.spearman_mean:.3f}"
    print(f"  mean shares over all rows        rank correlation over experts {mean}")
    print(f"written to {args.run / 'metrics.json'}, from where export takes them; report.html stays as it was")


def fit_or_resume(recipe: "Recipe", folder: Path, out: Path) -> None:
    """One run of a sweep."""
    from training.run import fit

    print(f"run {out.name}", file=sys.stderr, flush=True)
    fit(recipe, folder, out, resume=True)


def _sweep(args: argparse.Namespace) -> None:
    from training.distributed import refuse_several
    from training.sweep import parse_grid, parse_seeds, read_variants, sweep

    refuse_several("sweep")
    if not args.vary and args.variants is None:
        raise RecipeError("sweep: needs --vary or --variants")
    if args.jobs < 1:
        raise RecipeError(f"--jobs: expected 1 or more, found {args.jobs}")
    grid = parse_grid(args.vary, read_variants(args.variants) if args.variants else [])
    seeds = parse_seeds(args.seeds)
    table = sweep(args.recipe, grid, seeds, args.out, fit_or_resume, overrides=args.overrides, jobs=args.jobs)
    print(table.read_text(), end="")
    print(f"written to {table} and {table.with_suffix('.html').name} beside it")


def _print_metrics(splits: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for split, metrics in splits.items():
        print(f"{split}:")
        for name, m in metrics.items():
            interval = f"  (95 % interval {m['low']:.4f} to {m['high']:.4f})" if "low" in m else ""
            print(f"  {name:<12} {m['value']:.4f}{interval}")


def _wait_briefly() -> None:
    """Let torch's threads sleep after some microseconds of waiting for each other; takes effect before torch is imported.

    By default they spin for milliseconds, and where another process has one of two cores, both may be on the other one: a step
    of 70 ms then took 5,600, and takes 220 like this. On a machine to itself nothing is lost.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit status. A user's mistake is one line on standard error per problem."""
    args = _parser().parse_args(arguments)
    _wait_briefly()
    try:
        {"fit": _fit, "evaluate": _evaluate, "stability": _stability, "sweep": _sweep}[args.command](args)
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on after the last whole epoch", file=sys.stderr)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
