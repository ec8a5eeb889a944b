"""Bundles to run in the shadow of the tiny one: the same formulas with other numbers, or with columns in another order.

The other model weighs its experts (0.1, 0.2, 0.3, 0.4) where the tiny one does (0.4, 0.3, 0.2, 0.1), and its bias is (0, -0.5)
where the tiny one's is (0, -1). For the example, of which the experts say dead with 2, 2, 3, 1, it says
0.1 x 2 + 0.2 x 2 + 0.3 x 3 + 0.4 x 1 = 1.9, and its risk is 1 / (1 + exp(0.5 - 0.5 x 1.9)) = 0.610639: 0.098142 more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from service.bundle.manifest import Answer, CalibrationInfo, Manifest
from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.schema import FeatureSchema
from service.bundle.store import MODEL_FILE, REFERENCE_FILE, write_bundle
from tests.service.clinical.clinical_bundle import clinical_schema
from tests.tiny_bundle import WEIGHTS, tiny_graph, tiny_manifest, tiny_output, tiny_reference, tiny_schema

OTHER_WEIGHTS, OTHER_BIAS = (0.1, 0.2, 0.3, 0.4), (0.0, -0.5)
EXAMPLE_DIFFERENCE = 0.098142  # of the example's risk, to the last digit that is told


def other_output(labs: NDArray[np.float32], history: NDArray[np.float32]) -> Output:
    """What the other model answers, computed with numpy."""
    tiny = tiny_output(labs, history)
    weights = np.repeat(np.array([OTHER_WEIGHTS], np.float32), len(labs), axis=0)
    logits = (weights[:, :, None] * tiny.expert_logits).sum(axis=1)
    scores = np.exp(0.5 * logits + np.float32(OTHER_BIAS))
    return Output(scores / scores.sum(axis=1, keepdims=True), logits, weights, tiny.expert_logits)


def write_other_bundle(folder: Path, **changes: Any) -> Path:
    """The other model; `changes` of its manifest."""
    graph = tiny_graph()
    _replace(graph, {"weights": np.array([OTHER_WEIGHTS], np.float32), "bias": np.array(OTHER_BIAS, np.float32)})
    output = other_output(np.array([[4, 140]], np.float32), np.array([[70, 1]], np.float32))
    answer = Answer.model_validate({name: getattr(output, name)[0].tolist() for name in OUTPUT_NAMES})
    calibration = CalibrationInfo(method="temperature", scale=(0.5, 0.5), bias=OTHER_BIAS, num_rows=40)
    return _write(folder, graph, {"version": "2.0.0", "calibration": calibration, **changes}, answer)


def write_reordered_bundle(folder: Path) -> Path:
    """The tiny model, whose labs are (sod, crea)."""
    graph = tiny_graph()
    for node in graph.graph.node:
        node.input[:] = ["labs_in_order" if name == "labs" else name for name in node.input]
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 0], np.int64), "order"))
    graph.graph.node.insert(0, helper.make_node("Gather", ["labs", "order"], ["labs_in_order"], axis=1))
    labs, history = tiny_schema().modalities
    features = FeatureSchema(modalities=(labs.model_copy(update={"features": labs.features[::-1]}), history))
    return _write(folder, graph, {"version": "1.1.0", "features": features})


def write_unnamed_bundle(folder: Path, *, fails_on: float | None = None) -> Path:
    """The tiny model as a hospital gets it, but for creatinine, which it has no LOINC code for.

    `fails_on`: a creatinine for which the graph answers NaN.
    """
    labs, history = clinical_schema().modalities
    crea = labs.features[0].model_copy(update={"loinc": ()})
    features = FeatureSchema(modalities=(labs.model_copy(update={"features": (crea, labs.features[1])}), history))
    graph = tiny_graph(poisoned=fails_on is not None)
    if fails_on is not None:
        _replace(graph, {"poison": np.array(fails_on, np.float32)})
    return _write(folder, graph, {"version": "1.1.0", "features": features})


def _replace(graph: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> None:
    for tensor in graph.graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))


def _write(folder: Path, graph: onnx.ModelProto, changes: Mapping[str, Any], answer: Answer | None = None) -> Path:
    def fill(staged: Path) -> None:
        onnx.save(graph, staged / MODEL_FILE)
        (staged / REFERENCE_FILE).write_text(json.dumps(tiny_reference()))

    def manifest(files: Any) -> Manifest:
        return tiny_manifest(files, answer=answer).model_copy(update=dict(changes))

    return write_bundle(folder, fill=fill, manifest=manifest).path


WEIGHT_DISTANCES = tuple(abs(a - b) for a, b in zip(OTHER_WEIGHTS, WEIGHTS, strict=True))
