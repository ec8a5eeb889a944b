"""Files of predictions: JSON lines with everything, or tables of one flat row each; written whole or not at all."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import polars as pl
from pydantic_core import to_json

from service.bundle.answers import Prediction
from service.bundle.tables import TableError

JSONL_SUFFIXES = (".jsonl", ".ndjson")
OUT_SUFFIXES = (*JSONL_SUFFIXES, ".csv", ".parquet")
_ROWS_IN_MEMORY = 65_536  # of a parquet file, until they are written

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
    with path.open("wb") as file:
        file.write(tabulate([], experts).write_csv().encode())
        for predictions in batches:
            file.write(tabulate(predictions, experts).write_csv(include_header=False).encode())
            num_rows += len(predictions)
    return num_rows


def _write_parquet(batches: Batches, path: Path, experts: Sequence[str]) -> int:
    """Part by part, and then all parts as one file, without reading them into memory."""
    parts = _Parts(path.parent, experts)
    for predictions in batches:
        parts.add(predictions)
    parts.write()
    pl.scan_parquet(parts.paths, glob=False).sink_parquet(path)
    return parts.num_rows


class _Parts:
    """Parquet files of some rows each."""

    def __init__(self, folder: Path, experts: Sequence[str]) -> None:
        self.paths: list[Path] = []
        self.num_rows = 0
        self._folder, self._experts = folder, experts
        self._frames: list[pl.DataFrame] = []
        self._waiting = 0

    def add(self, predictions: Sequence[Prediction]) -> None:
        self._frames.append(tabulate(predictions, self._experts))
        self.num_rows += len(predictions)
        self._waiting += len(predictions)
        if self._waiting >= _ROWS_IN_MEMORY:
            self.write()

    def write(self) -> None:
        """What waits; an empty part where there never was anything, so that there is a table."""
        if self._frames or not self.paths:
            path = self._folder / f"part-{len(self.paths):06}.parquet"
            pl.concat([tabulate([], self._experts), *self._frames]).write_parquet(path)
            self.paths.append(path)
            self._frames, self._waiting = [], 0


def tabulate(predictions: Sequence[Prediction], experts: Sequence[str]) -> pl.DataFrame:
    """One flat row each: scalars, lists joined by `; `, and per expert its weight and contribution."""
    schema = _schema(experts)
    columns = zip(*(_flat(prediction, experts) for prediction in predictions), strict=True) if predictions else repeat(())
    return pl.DataFrame(dict(zip(schema, columns, strict=False)), schema=schema)


def _schema(experts: Sequence[str]) -> dict[str, Any]:
    text, number, flag = pl.String, pl.Float64, pl.Boolean
    return {
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
