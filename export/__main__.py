"""`python -m export RUN --out BUNDLE` and `python -m export released CHECKPOINT.pth --config config.json --out BUNDLE`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from service.bundle.errors import BundleError, InferenceError, InvalidRecordError
from service.bundle.manifest import Manifest
from service.bundle.store import Bundle
from service.bundle.tables import TableError
from training.errors import TrainingError

_RELEASED = "released"


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write; must not exist")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "int8"],
        default="fp32",
        help="number format of the graph; fp16: its experts, for the GPU; int8: its large matrix products, for large models "
        "on the CPU",
    )
    parser.add_argument("--calibration", type=Path, help="int8: a table of rows like those to be served, csv or parquet")
    parser.add_argument(
        "--attribution-points",
        type=int,
        default=16,
        help="points of the path by which contributions are attributed to features; 0: a bundle without that graph",
    )
    parser.add_argument(
        "--target", choices=["cpu", "cuda"], default="cpu", help="hardware that the graph is laid out for; cuda: experts stacked"
    )


def _run_parser() -> argparse.ArgumentParser:
    epilog = "python -m export released CHECKPOINT.pth --config config.json --out BUNDLE imports a released checkpoint."
    parser = argparse.ArgumentParser(prog="python -m export", description="Exports a trained run to a bundle.", epilog=epilog)
    parser.add_argument("run", type=Path, help="run folder of python -m training fit")
    _add_out(parser)
    return parser


def _released_parser() -> argparse.ArgumentParser:
    description = "Exports a checkpoint of the authors' released I2MoE code to a bundle."
    parser = argparse.ArgumentParser(prog="python -m export released", description=description)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="JSON with what a released checkpoint does not record")
    _add_out(parser)
    return parser


def _export(arguments: Sequence[str]) -> Bundle:
    if arguments and arguments[0] == _RELEASED:
        args = _released_parser().parse_args(arguments[1:])
        from export.bundle import export_bundle
        from export.released import released_material

        material = released_material(args.checkpoint, args.config)
    else:
        args = _run_parser().parse_args(arguments)
        from export.bundle import export_bundle, run_material

        material = run_material(args.run)
    return export_bundle(
        material,
        args.out,
        target=args.target,
        precision=args.precision,
        calibration=args.calibration,
        attribution_points=args.attribution_points,
        tell=lambda step: print(f"{step} ...", file=sys.stderr, flush=True),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one export; answers the exit status."""
    try:
        bundle = _export(sys.argv[1:] if arguments is None else arguments)
    except (ExportError, BundleError, InferenceError, InvalidRecordError, TableError, TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parity = bundle.manifest.parity
    what = "calibration rows" if bundle.manifest.graph.precision == "int8" else "cases"
    print(f"bundle written to {bundle.path}: {parity.cases} {what} agree to {parity.max_abs_diff:.1e} (limit {parity.atol:g})")
    print(_attribution(bundle.manifest))
    return 0


def _attribution(manifest: Manifest) -> str:
    """One line on the second graph."""
    if (info := manifest.attribution) is None:
        return f"no attribution to features: {manifest.attribution_left_out or 'not asked for'}"
    found = info.completeness
    untold = found.mean_gap / found.mean_change if found.mean_change else 0.0  # a model that answers everybody alike
    return f"attribution to features by {info.method}, {info.num_points} points, leaves {untold:.2%} untold on average"


if __name__ == "__main__":
    sys.exit(main())
