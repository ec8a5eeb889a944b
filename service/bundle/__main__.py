"""`python -m service.bundle show BUNDLE` and `python -m service.bundle predict BUNDLE INPUT --out OUT`.

Looks at a bundle, or scores a file with it, without a server.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from service.bundle.answers import Prediction
from service.bundle.encoding import EncodedBatch, encode_records, encode_table
from service.bundle.errors import BundleError, InferenceError
from service.bundle.machine import leave_garbage, usable_cpus
from service.bundle.manifest import Manifest
from service.bundle.prediction_files import JSONL_SUFFIXES, write_predictions
from service.bundle.predictor import CPU, Predictor
from service.bundle.progress import progress
from service.bundle.schema import FeatureSchema
from service.bundle.score import score
from service.bundle.store import Bundle, open_bundle
from service.bundle.table_files import TABLE_SUFFIXES, count_rows, read_batches
from service.bundle.tables import TableError, absent_columns, known_columns
from service.bundle.validity import describe_validity

_BATCH_SIZE = 128  # larger ones do not stay in a core's cache
GARBAGE_THRESHOLD = 200_000  # new objects


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file. Raises `TableError` naming the line that is not a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise TableError(f"{path}: line {number} is not a JSON object")
            yield record


def batches_of(path: Path, schema: FeatureSchema, num_rows: int | None = None, *, num_threads: int = 1) -> Iterator[EncodedBatch]:
    """The rows of a jsonl, csv, csv.gz or parquet file, `num_rows` at a time (else 128). Raises `TableError`.

    `num_threads` texts are embedded at a time.
    """
    num_rows = num_rows or _BATCH_SIZE
    if path.name.endswith(JSONL_SUFFIXES):
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        records = read_jsonl(path)
        while batch := list(islice(records, num_rows)):
            yield encode_records(batch, schema, num_threads=num_threads)
        return
    if not path.name.endswith(TABLE_SUFFIXES):
        raise TableError(f"{path}: expected a file ending in {', '.join((*JSONL_SUFFIXES, *TABLE_SUFFIXES))}")
    for position, table in enumerate(read_batches(path, num_rows, wanted=known_columns(schema))):
        if position == 0 and (absent := absent_columns(table, schema)):
            print(f"{path}: no column for {', '.join(absent)}: treated as missing", file=sys.stderr)
        yield encode_table(table, schema, num_threads=num_threads)


def describe(bundle: Bundle) -> str:
    """The bundle in a screenful, for a person."""
    manifest = bundle.manifest
    lines = [
        f"{manifest.name} {manifest.version}  ({bundle.path})",
        f"  predicts     {manifest.task.outcome} ({manifest.task.kind}: {', '.join(manifest.task.labels)})",
        f"  graph        opset {manifest.graph.opset}, {manifest.graph.precision}, sha256 {bundle.sha256[:16]}",
        f"  parity       {manifest.parity.max_abs_diff:.1e} over {manifest.parity.cases} cases (limit {manifest.parity.atol:g})",
    ]
    if (attribution := manifest.attribution) is not None:
        gap = attribution.completeness.mean_gap
        lines.append(f"  features     {attribution.method}, {attribution.num_points} points, mean gap {gap:.1e}")
    lines += [f"  input        {m.name}: {len(m.features)} features, {m.width} columns" for m in manifest.features.modalities]
    lines += _describe_metrics(manifest) + _describe_uncertainty(manifest) + _describe_experts(manifest)
    lines += describe_validity(manifest.explanation_validity)
    lines += [f"  {key:<12} {value}" for key, value in manifest.model_card.model_dump(exclude_none=True).items()]
    return "\n".join(lines)


def _describe_metrics(manifest: Manifest) -> list[str]:
    return [
        f"  {split:<12} "
        + ", ".join(
            f"{name} {m.value:.3f}" + (f" ({m.low:.3f} to {m.high:.3f})" if m.low is not None else "")
            for name, m in values.items()
        )
        for split, values in manifest.metrics.items()
    ]


def _describe_uncertainty(manifest: Manifest) -> list[str]:
    info = manifest.uncertainty
    if info is None:
        return []
    kind = "intervals" if manifest.task.kind == "regression" else "sets"
    rows = f"{info.num_rows} rows" + "".join(f", {name} {count}" for name, count in info.rows_by_class.items())
    told = f"  uncertainty  {info.method} {kind}, coverage {info.coverage:g} ({info.guarantee}, {rows})"
    if info.measured is None:
        return [told]
    found = info.measured
    return [f"{told}; on {found.split} rows {found.coverage:.3f}, abstains in {100 * found.abstain_rate:.0f} %"]


def _describe_experts(manifest: Manifest) -> list[str]:
    if manifest.explanation is None:
        return [f"  expert       {expert.name}" for expert in manifest.experts]
    return [
        f"  expert       {e.name:<24} weight {e.weight.mean:.3f}  share of contribution {e.contribution_share.mean:.3f}  "
        f"dominant in {100 * e.dominant_rate:.0f} %"
        for e in manifest.explanation.experts
    ]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what a bundle is and how good it is")
    show.add_argument("bundle", type=Path)
    show.add_argument("--json", action="store_true", help="the whole manifest")
    predict = commands.add_parser("predict", help="score a file")
    predict.add_argument("bundle", type=Path)
    predict.add_argument("input", help="jsonl, csv, csv.gz or parquet; with --ray a parquet file, a folder of them, or a URL")
    predict.add_argument("--out", type=Path, required=True, help="jsonl (with explanations), csv or parquet (one row each)")
    predict.add_argument("--features", action="store_true", help="attribute every expert's contribution to features (jsonl)")
    predict.add_argument("--provider", choices=["auto", "cuda", "cpu"], default="auto")
    predict.add_argument(
        "--threads", type=_positive, help="batches in the graph at a time; on the CPU all usable cores by default"
    )
    predict.add_argument(
        "--ray", type=_positive, metavar="WORKERS", help="on Ray Data: parquet files to a folder of parquet files"
    )
    return parser


def _predict_on_ray(args: argparse.Namespace, bundle: Bundle) -> str:
    from service.bundle.ray_data import predict_on_ray

    counts = predict_on_ray(
        bundle.path, args.input, args.out, num_workers=args.ray, batch_size=_BATCH_SIZE, provider=args.provider
    )
    return _told(args, Counter(counts))


def _told(args: argparse.Namespace, counts: Counter[str]) -> str:
    if counts["error"] and not counts["ok"]:
        raise TableError(f"{args.input}: none of {counts.total()} rows could be scored; {args.out} says why of each")
    return f"{counts.total()} rows written to {args.out}: {counts['ok']} predictions, {counts['error']} errors"


def _predict(args: argparse.Namespace, bundle: Bundle) -> str:
    if args.ray:
        return _predict_on_ray(args, bundle)
    source = Path(args.input)
    if source.exists() and args.out.exists() and source.samefile(args.out):
        raise TableError(f"{args.out}: is the file to score; expected another to write")
    predictor = Predictor(bundle, provider=args.provider)
    predictor.replay_example()
    if args.features and bundle.attribution_path is None:
        raise BundleError(f"{bundle.path}: has no graph that attributes contributions to features")
    num_threads = args.threads or (usable_cpus() if predictor.provider == CPU else 1)
    encoded = batches_of(source, bundle.manifest.features, num_threads=args.threads or usable_cpus())
    batches = score(predictor, encoded, num_threads=num_threads, with_features=args.features)
    counts = Counter[str]()
    leave_garbage(GARBAGE_THRESHOLD)
    with progress(count_rows(source) if source.is_file() else None) as told:

        def counted() -> Iterator[list[Prediction]]:
            for predictions in batches:
                counts.update(prediction["status"] for prediction in predictions)
                told(len(predictions))
                yield predictions

        write_predictions(counted(), args.out, [expert.name for expert in bundle.manifest.experts])
    return _told(args, counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit status."""
    args = _parser().parse_args(arguments)
    try:
        bundle = open_bundle(args.bundle)
        if args.command == "predict":
            print(_predict(args, bundle))
        else:
            print(bundle.manifest.model_dump_json(indent=1) if args.json else describe(bundle))
    except (BundleError, InferenceError, TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
