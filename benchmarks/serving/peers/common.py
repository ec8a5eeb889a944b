"""What the peers share: the same graph through ONNX Runtime with the same threads, and what they answer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

NAMES = ("lab", "note", "code")
OUTPUTS = ("prediction", "expert_weights", "expert_logits")
MAX_BATCH = 64


def session() -> ort.InferenceSession:
    """The graph of the bundle that `I2MOE_BUNDLE` names, on the CPU, with the options that ours has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("I2MOE_NUM_THREADS", "2"))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    return ort.InferenceSession(str(Path(os.environ["I2MOE_BUNDLE"]) / "model.onnx"), options, providers=["CPUExecutionProvider"])


def stacked(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Records of lists as the graph's arrays; a wrong length or type fails, anything else is not looked at."""
    return {name: np.array([record[name] for record in records], np.float32) for name in NAMES}


def score(graph: ort.InferenceSession, arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One answer per row."""
    found = [part.tolist() for part in graph.run(OUTPUTS, dict(arrays))]
    return [dict(zip(OUTPUTS, row, strict=True)) for row in zip(*found, strict=True)]
