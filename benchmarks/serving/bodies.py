"""Records as the bodies of requests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import reference
from service.bundle.features import FloatArray
from service.bundle.store import Bundle


@dataclass(frozen=True, slots=True)
class Body:
    """What is posted, where to, and how many bytes of it are JSON where not all are."""

    path: Path
    url: str
    json_bytes: str | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """What is asked about: as JSON has it, and as the graph reads it."""

    model: str
    as_json: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, FloatArray]

    def __len__(self) -> int:
        return len(self.as_json)

    @classmethod
    def of_reference(cls, count: int = 1) -> "Records":
        """Random ones of the reference shape, in JSON of five significant digits."""
        arrays = reference.arrays(reference.Shape(), count)
        as_json = [{name: [float(f"{v:.5g}") for v in x[i].tolist()] for name, x in arrays.items()} for i in range(count)]
        return cls("reference", as_json, arrays)

    @classmethod
    def of_example(cls, bundle: Bundle, count: int = 1) -> "Records":
        """A bundle's example, so many times."""
        manifest = bundle.manifest
        encoded = manifest.features.encode(manifest.example.record).arrays
        return cls(manifest.name, [manifest.example.record] * count, manifest.features.stack([encoded] * count))


def write_bodies(folder: Path, records: Records) -> tuple[Body, Body]:
    """Records as JSON, and in bytes."""
    plain = Body(folder / "body.json", "/predict")
    plain.path.write_text(json.dumps({"instances": records.as_json}, separators=(",", ":")))
    tensors = [
        {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        for name, x in records.arrays.items()
    ]
    text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    binary = Body(folder / "body.bin", f"/v2/models/{records.model}/infer", str(len(text)))
    binary.path.write_bytes(b"".join([text, *(x.tobytes() for x in records.arrays.values())]))
    return plain, binary
