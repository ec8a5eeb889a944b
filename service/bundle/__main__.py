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

from service.bundle.answers import Answers, Prediction, build_refusal
from service.bundle.attribution import RecordAttribution, one_hot, tell_attributions
from service.bundle.errors import BundleError, InferenceError, InvalidRecordError
from service.bundle.explanation import decide
from service.bundle.manifest import Manifest
from service.bundle.output import Output
from service.bundle.predictor import Predictor
from service.bundle.schema import EncodedRecord, FeatureSchema, FloatArray
from service.bundle.store import Bundle, open_bundle
from service.bundle.tables import TABLE_SUFFIXES, TableError, absent_columns, read_table, table_records
from service.bundle.validity import describe_validity

Arrays = dict[str, FloatArray]

_BATCH_SIZE = 256
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_OUT_SUFFIXES = (*_JSONL_SUFFIXES, ".csv", ".parquet")


def _batches(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(records, _BATCH_SIZE)):
        yield batch


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


def read_records(path: Path, schema: FeatureSchema) -> Iterator[dict[str, Any]]:
    """The records of a jsonl, csv, csv.gz or parquet file. Raises `TableError`."""
    if path.name.endswith(_JSONL_SUFFIXES):
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        return read_jsonl(path)
    if not path.name.endswith(TABLE_SUFFIXES):
        raise TableError(f"{path}: expected a file ending in {', '.join((*_JSONL_SUFFIXES, *TABLE_SUFFIXES))}")
    frame = read_table(path)
    if absent := absent_columns(frame, schema):
        print(f"{path}: no column for {', '.join(absent)}: treated as missing", file=sys.stderr)
    ids = frame.get_column("id").to_list() if "id" in frame.columns else [None] * frame.height
    return ({"id": row_id, **record} for row_id, record in zip(ids, table_records(frame, schema), strict=True))


def score(predictor: Predictor, records: Iterator[dict[str, Any]], *, with_features: bool = False) -> Iterator[Prediction]:
    """Predictions in the order of `records`; a record that does not fit gets `status: "error"` and its problems.

    `with_features`: every expert is told with the features that drove it.
    """
    for batch in _batches(records):
        yield from _score_batch(predictor, batch, with_features=with_features)


def _score_batch(predictor: Predictor, batch: Sequence[dict[str, Any]], *, with_features: bool) -> list[Prediction]:
    refusals: dict[int, Prediction] = {}
    good: list[tuple[EncodedRecord, str | None]] = []
    for row, record in enumerate(batch):
        try:
            good.append((predictor.manifest.features.encode(record), _id_of(record)))
        except InvalidRecordError as error:
            refusals[row] = build_refusal(_id_of(record), "INVALID_INPUT", error, error.problems)
    scored = iter(_answers(predictor, good, with_features=with_features) if good else ())
    return [refusals[row] if row in refusals else next(scored) for row in range(len(batch))]


def _answers(
    predictor: Predictor, records: Sequence[tuple[EncodedRecord, str | None]], *, with_features: bool
) -> list[Prediction]:
    """Predictions of encoded records with their ids; when the graph fails, each alone, so that only the culprit fails."""
    encoded, ids = zip(*records, strict=True)
    try:
        output = predictor.run(predictor.manifest.features.stack([record.arrays for record in encoded]))
    except InferenceError as error:
        if len(records) == 1:
            return [build_refusal(ids[0], "INFERENCE_FAILED", error)]
        return [answer for record in records for answer in _answers(predictor, [record], with_features=with_features)]
    told = list(_attributed(predictor, output, encoded)) if with_features else None
    return Answers.of(output, predictor.manifest).predictions(encoded, ids, attributions=told)


def _attributed(predictor: Predictor, output: Output, encoded: Sequence[EncodedRecord]) -> Iterator[RecordAttribution | None]:
    """A few records at a time, as each is many rows of the graph; None for a record on which it fails."""
    schema, task = predictor.manifest.features, predictor.manifest.task
    label = one_hot(decide(output.prediction, task), len(task.labels))
    at_once = attribution.records_at_once if (attribution := predictor.manifest.attribution) else 1
    for start in range(0, len(encoded), at_once):
        rows = slice(start, start + at_once)
        arrays = schema.stack([record.arrays for record in encoded[rows]])
        yield from _attribute_rows(predictor, arrays, label[rows])


def _attribute_rows(predictor: Predictor, arrays: Arrays, label: FloatArray) -> list[RecordAttribution | None]:
    try:
        return [*tell_attributions(predictor.attribute(arrays, label), predictor.manifest.features)]
    except InferenceError:
        if len(label) == 1:
            return [None]
        singles = ({name: rows[i : i + 1] for name, rows in arrays.items()} for i in range(len(label)))
        return [told for i, single in enumerate(singles) for told in _attribute_rows(predictor, single, label[i : i + 1])]


def _id_of(record: dict[str, Any]) -> str | None:
    return None if record.get("id") is None else str(record["id"])


def flatten(prediction: Prediction) -> dict[str, Any]:
    """A prediction as one row of a table: scalars, and per expert its weight and contribution."""
    row = {key: prediction.get(key) for key in ("id", "status", "label", "probability", "risk_band")}
    row["error"] = prediction.get("error", {}).get("message")
    row |= {key: "; ".join(prediction.get(key, [])) or None for key in ("missing", "warnings")}
    row |= _flat_uncertainty(prediction.get("uncertainty") or {})
    explanation = prediction.get("explanation") or {"experts": []}
    row |= {key: explanation.get(key) for key in ("dominant", "agreement", "summary")}
    for expert in explanation["experts"]:
        row[f"weight {expert['name']}"] = expert["weight"]
        row[f"contribution {expert['name']}"] = expert["contribution"]
    return row


def _flat_uncertainty(uncertainty: dict[str, Any]) -> dict[str, Any]:
    low, high = uncertainty.get("interval", (None, None))
    row: dict[str, Any] = {"set": "; ".join(uncertainty.get("set", [])) or None, "interval_low": low, "interval_high": high}
    return row | {key: uncertainty.get(key) for key in ("entropy", "disagreement", "abstain", "experts_disagree")}


def write_predictions(predictions: Iterator[Prediction], out: Path) -> int:
    """Write to jsonl (everything) or csv/parquet (one flat row each), whole or not at all; answers the number of rows.

    Raises `TableError` for a file of another kind.
    """
    if not out.name.endswith(_OUT_SUFFIXES):
        raise TableError(f"{out}: expected a file ending in {', '.join(_OUT_SUFFIXES)}")
    staged = out.with_name(f".{out.name}.partial")
    try:
        num_rows = _write(predictions, out.name, staged)
        staged.replace(out)
    finally:
        staged.unlink(missing_ok=True)
    return num_rows


def _write(predictions: Iterator[Prediction], name: str, staged: Path) -> int:
    if not name.endswith(_JSONL_SUFFIXES):
        import polars as pl

        rows = [flatten(prediction) for prediction in predictions]
        frame = pl.DataFrame(rows, infer_schema_length=None)
        frame.write_csv(staged) if name.endswith(".csv") else frame.write_parquet(staged)
        return len(rows)
    num_rows = 0
    with staged.open("w", encoding="utf-8") as file:
        for num_rows, prediction in enumerate(predictions, start=1):  # noqa: B007 - the count outlives the loop
            file.write(json.dumps(prediction) + "\n")
    return num_rows


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
    lines += [f"  {key:<12} {value}" for key, value in manifest.model_card.model_dump().items()]
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what a bundle is and how good it is")
    show.add_argument("bundle", type=Path)
    show.add_argument("--json", action="store_true", help="the whole manifest")
    predict = commands.add_parser("predict", help="score a file")
    predict.add_argument("bundle", type=Path)
    predict.add_argument("input", type=Path, help="jsonl, csv, csv.gz or parquet")
    predict.add_argument("--out", type=Path, required=True, help="jsonl (with explanations), csv or parquet (one row each)")
    predict.add_argument("--features", action="store_true", help="attribute every expert's contribution to features (jsonl)")
    predict.add_argument("--provider", choices=["auto", "cuda", "cpu"], default="auto")
    return parser


def _predict(args: argparse.Namespace, bundle: Bundle) -> str:
    counts = Counter[str]()

    def counted(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            counts[prediction["status"]] += 1
            yield prediction

    predictor = Predictor(bundle, provider=args.provider)
    predictor.replay_example()
    if args.features and bundle.attribution_path is None:
        raise BundleError(f"{bundle.path}: has no graph that attributes contributions to features")
    records = read_records(args.input, bundle.manifest.features)
    num_rows = write_predictions(counted(score(predictor, records, with_features=args.features)), args.out)
    if counts["error"] and not counts["ok"]:
        raise TableError(f"{args.input}: none of {num_rows} rows could be scored; {args.out} says why of each")
    return f"{num_rows} rows written to {args.out}: {counts['ok']} predictions, {counts['error']} errors"


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
