"""What the parts of one request cost without the network: reading, graph, explaining, listing, writing; as JSON and in bytes.

    python -m benchmarks.serving.stages --out DIR [--records 1,64] [--rounds 7]

Reading is decoding, validation and encoding of one record or many of the reference shape; the graph runs on one thread. Rounds
go through all parts in turn; figures are medians of rounds, microseconds a record. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from benchmarks import reference
from benchmarks.serving.bodies import Records, write_bodies
from service.api.requests import RequestReader
from service.api.tensors import infer_response, parse_infer
from service.bundle.answers import Explained
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle

_TAKES_S = 0.05  # of one part in one round, about


def parts_of(bundle: Bundle, folder: Path, num_records: int) -> dict[str, Callable[[], Any]]:
    """Every part of a request of this many records, as something to call."""
    manifest, schema = bundle.manifest, bundle.manifest.features
    plain, binary = write_bodies(folder, Records.of_reference(num_records))
    text, numbers = plain.path.read_bytes(), binary.path.read_bytes()
    reader = RequestReader(schema, max_instances=num_records)
    predictor = Predictor(bundle, provider="cpu", num_threads=1)
    read = reader.read(text)
    tensors = parse_infer(numbers, binary.json_bytes, schema, max_instances=num_records)
    output = predictor.run(tensors.records.arrays)
    explained = Explained.of(output, manifest)
    answers = explained.answers()
    predictions = answers.predictions(read.encoded, [None] * num_records)
    return {
        "read JSON": lambda: reader.read(text),
        "read bytes": lambda: parse_infer(numbers, binary.json_bytes, schema, max_instances=num_records),
        "graph": lambda: predictor.run(tensors.records.arrays),
        "explain": lambda: Explained.of(output, manifest),
        "list": explained.answers,
        "tell": lambda: answers.predictions(read.encoded, [None] * num_records),
        "write JSON": lambda: to_json(predictions, inf_nan_mode="null"),
        "write bytes": lambda: infer_response(tensors, answers, "id"),
    }


def time_parts(parts: dict[str, Callable[[], Any]], rounds: int, num_records: int) -> dict[str, float]:
    """Median microseconds a record of each part."""
    calls = {name: max(1, int(_TAKES_S / _seconds(part, 3))) for name, part in parts.items()}
    told: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            told[name].append(1e6 * _seconds(part, calls[name]) / num_records)
    return {name: round(statistics.median(times), 2) for name, times in told.items()}


def _seconds(part: Callable[[], Any], calls: int) -> float:
    """Seconds of one call, mean of some."""
    started = time.perf_counter()
    for _ in range(calls):
        part()
    return (time.perf_counter() - started) / calls


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.stages", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", default="1,64")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    bundle = reference.bundle(args.out)
    told = {n: time_parts(parts_of(bundle, args.out, n), args.rounds, n) for n in (int(n) for n in args.records.split(","))}
    names = list(next(iter(told.values())))
    print(f"| records | {' | '.join(names)} |\n|{' --- |' * (1 + len(names))}")
    for num_records, parts in told.items():
        print(f"| {num_records} | {' | '.join(f'{parts[name]:.1f}' for name in names)} |")
    ratios = {n: round(parts["read JSON"] / parts["read bytes"], 2) for n, parts in told.items()}
    for num_records, ratio in ratios.items():
        print(f"{num_records} records: bytes are read {ratio:.1f} times as fast as JSON")
    document = {"benchmark": "serving stages", "us_per_record": told, "json_over_bytes": ratios, "cores": os.cpu_count()}
    document |= {"machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(document | {"versions": {p: version(p) for p in ("msgspec", "numpy", "pydantic", "onnxruntime-gpu")}}))


if __name__ == "__main__":
    main()
