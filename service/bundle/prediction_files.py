"""Files of predictions: JSON lines with everything, or tables of one flat row each; written whole or not at all."""

import csv
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from service.bundle.answers import Prediction
from service.bundle.tables import TableError

JSONL_SUFFIXES = (".jsonl", ".ndjson")
OUT_SUFFIXES = (*JSONL_SUFFIXES, ".csv", ".parquet")
_ROWS_IN_GROUP = 16_384  # of a parquet file, at least: so many are in memory until they are written

Batches = Iterable[Sequence[Prediction]]


def write_predictions(batches: Batches, out: Path, experts: Sequence[str]) -> int:
    """Write predictions to jsonl, csv or parquet as they come, whole or not at all; answers the number of rows.

    `experts`: their names, of which each has two columns in a table. Raises `TableError` for a file of another kind.
    """
    if not out.name.endswith(OUT_SUFFIXES):
        raise TableError(f"{out}: expected a file ending in {', '.join(OUT_SUFFIXES)}")
    if out.is_dir():
        raise TableError(f"{out}: is a directory, expected a file to write")
    with _staged(out) as folder:
        staged = folder / out.name
        if out.name.endswith(".parquet"):
            num_rows = _write_parquet(batches, staged, experts)
        elif out.name.endswith(".csv"):
            num_rows = _write_csv(batches, staged, experts)
        else:
            num_rows = _write_jsonl(batches, staged)
        staged.replace(out)
    return num_rows


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside the file, which is gone afterwards."""
    folder = out.with_name(f".{out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _write_jsonl(batches: Batches, path: Path) -> int:
    num_rows = 0
    with path.open("wb") as file:
        for predictions in batches:
            file.writelines(to_json(prediction) + b"\n" for prediction in predictions)
            num_rows += len(predictions)
    return num_rows


def _write_csv(batches: Batches, path: Path, experts: Sequence[str]) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_schema(experts).names)
        for predictions in batches:
            writer.writerows(map(_text, _flat(prediction, experts)) for prediction in predictions)
            num_rows += len(predictions)
    return num_rows


def _text(cell: Any) -> Any:
    """A cell as csv has it: numbers in their shortest form (0.00001, 1e-6), true and false; empty where there is nothing."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if not isinstance(cell, float):
        return cell
    text = repr(cell)
    return f"{Decimal(text):f}" if text.endswith("e-05") else text.replace("e-0", "e-")


def _write_parquet(batches: Batches, path: Path, experts: Sequence[str]) -> int:
    """Row group by row group."""
    num_rows = 0
    waiting: list[pa.RecordBatch] = []
    with pa.OSFile(str(path), "wb") as file, pq.ParquetWriter(file, _schema(experts), compression="zstd") as writer:
        for predictions in batches:
            waiting.append(tabulate(predictions, experts))
            num_rows += len(predictions)
            if sum(map(len, waiting)) >= _ROWS_IN_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return num_rows


def tabulate(predictions: Sequence[Prediction], experts: Sequence[str]) -> pa.RecordBatch:
    """One flat row each: scalars, lists joined by `; `, and per expert its weight and contribution."""
    schema = _schema(experts)
    columns = zip(*(_flat(prediction, experts) for prediction in predictions), strict=True) if predictions else repeat(())
    return pa.RecordBatch.from_arrays([pa.array(*column) for column in zip(columns, schema.types, strict=False)], schema=schema)


def _schema(experts: Sequence[str]) -> pa.Schema:
    text, number, flag = pa.string(), pa.float64(), pa.bool_()
    return pa.schema(
        {
            **dict.fromkeys(("id", "status", "label"), text),
            "probability": number,
            **dict.fromkeys(("risk_band", "error", "missing", "warnings", "set"), text),
            **dict.fromkeys(("interval_low", "interval_high", "entropy", "disagreement"), number),
            **dict.fromkeys(("abstain", "experts_disagree"), flag),
            "dominant": text,
            "agreement": number,
            "summary": text,
            **{f"{what} {name}": number for name in experts for what in ("weight", "contribution")},
        }
    )


def _flat(prediction: Prediction, experts: Sequence[str]) -> tuple[Any, ...]:
    get, uncertainty = prediction.get, prediction.get("uncertainty") or {}
    explanation = prediction.get("explanation") or {}
    low, high = uncertainty.get("interval", (None, None))
    told = explanation.get("experts") or [{}] * len(experts)
    return (
        *map(get, ("id", "status", "label", "probability", "risk_band")),
        get("error", {}).get("message"),
        "; ".join(get("missing", ())) or None,
        "; ".join(get("warnings", ())) or None,
        "; ".join(uncertainty.get("set", ())) or None,
        low,
        high,
        *map(uncertainty.get, ("entropy", "disagreement", "abstain", "experts_disagree")),
        *map(explanation.get, ("dominant", "agreement", "summary")),
        *(expert.get(what) for expert in told for what in ("weight", "contribution")),
    )
