"""Records of the reference shape as the bodies of requests."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reference


@dataclass(frozen=True, slots=True)
class Body:
    """What is posted, where to, and how many bytes of it are JSON where not all are."""

    path: Path
    url: str
    json_bytes: str | None = None


def write_bodies(folder: Path, num_records: int = 1) -> tuple[Body, Body]:
    """Records as JSON of six significant digits, and in bytes."""
    arrays = reference.arrays(reference.Shape(), num_records)
    records = [{name: [float(f"{v:.5g}") for v in x[i].tolist()] for name, x in arrays.items()} for i in range(num_records)]
    plain = Body(folder / "body.json", "/predict")
    plain.path.write_text(json.dumps({"instances": records}, separators=(",", ":")))
    tensors = [
        {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        for name, x in arrays.items()
    ]
    text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    binary = Body(folder / "body.bin", "/v2/models/reference/infer", str(len(text)))
    binary.path.write_bytes(b"".join([text, *(x.tobytes() for x in arrays.values())]))
    return plain, binary
