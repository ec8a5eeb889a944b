"""A bundle with every kind of feature, whose graph says the same of everybody."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.bundle.embedding import copy_encoders
from service.bundle.manifest import Answer, Example, ExpertInfo, FileInfo, Manifest, TensorInfo
from service.bundle.schema import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    FeatureSchema,
    Modality,
    NumericFeature,
    TextFeature,
)
from service.bundle.store import MODEL_FILE, REFERENCE_FILE, Bundle, write_bundle
from tests.tiny_bundle import tiny_manifest
from tests.tiny_encoder import tiny_feature, write_tiny_encoder

RECORD: dict[str, Any] = {
    "labs": {"crea": 2.0, "flag": "yes"},
    "chart": {"codes": ["I10"], "groups": "icd10:I50.9|icd9:4280", "words": "kidney failure", "image": [[1.0, None]]},
    "note": {"note": "kidney heart"},
}
_OUTPUTS: dict[str, tuple[int | str, ...]] = {
    "prediction": ("batch", 2),
    "logits": ("batch", 2),
    "expert_weights": ("batch", 1),
    "expert_logits": ("batch", 1, 2),
}


def rich_schema(encoder: Path) -> FeatureSchema:
    """Three modalities with all kinds of features; 2, 8 and 2 columns."""
    labs = (
        NumericFeature(name="crea", unit="mg/dL", loinc=("2160-0",), lookback_hours=24, minimum=0, maximum=9),
        CategoricalFeature(name="flag", vocabulary=("no", "yes")),
    )
    chart = (
        CodesFeature(name="codes", vocabulary=("I10", "I20")),
        CodesFeature(name="groups", vocabulary=("icd10:I50", "chapter:circulatory"), grouping="icd"),
        TextFeature(name="words", vocabulary=("kidney", "heart"), idf=(1.0, 2.0)),
        ArrayFeature(name="image", shape=(1, 2)),
    )
    parts = {"labs": labs, "chart": chart, "note": (tiny_feature(encoder),)}
    return FeatureSchema(modalities=tuple(Modality(name=name, features=features) for name, features in parts.items()))


def _graph(schema: FeatureSchema) -> onnx.ModelProto:
    constants = {
        "none": np.zeros(1, np.float32),
        "one": np.ones((1, 1), np.float32),
        "last": np.array([1], np.int64),
        "offset": np.array([[0, 1]], np.float32),
    }
    nodes = [
        helper.make_node("IsNaN", ["labs"], ["gaps"]),
        helper.make_node("Where", ["gaps", "none", "none"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing", "last"], ["zero"], keepdims=1),
        helper.make_node("Add", ["zero", "offset"], ["logits"]),
        helper.make_node("Add", ["zero", "one"], ["expert_weights"]),
        helper.make_node("Unsqueeze", ["logits", "last"], ["expert_logits"]),
        helper.make_node("Softmax", ["logits"], ["prediction"], axis=-1),
    ]
    inputs = [helper.make_tensor_value_info(m.name, TensorProto.FLOAT, ["batch", m.width]) for m in schema.modalities]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in _OUTPUTS.items()]
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "rich", inputs, outputs, initial), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )


def _answer() -> Answer:
    odds = float(np.e)
    return Answer(prediction=(1 / (1 + odds), odds / (1 + odds)), logits=(0, 1), expert_weights=(1,), expert_logits=((0, 1),))


def write_rich_bundle(folder: Path) -> Bundle:
    """Write it to `folder`, its text encoder beside it."""
    schema = rich_schema(write_tiny_encoder(folder.with_name(f"{folder.name}-encoder")))

    def fill(staged: Path) -> None:
        copy_encoders(schema, staged)
        onnx.save(_graph(schema), staged / MODEL_FILE)
        (staged / REFERENCE_FILE).write_text(json.dumps({}))

    def manifest(files: dict[str, FileInfo]) -> Manifest:
        tiny = tiny_manifest(files)
        graph = tiny.graph.model_copy(
            update={
                "inputs": tuple(TensorInfo(name=m.name, shape=("batch", m.width)) for m in schema.modalities),
                "outputs": tuple(TensorInfo(name=name, shape=shape) for name, shape in _OUTPUTS.items()),
            }
        )
        changes = {
            "graph": graph,
            "features": schema,
            "experts": (ExpertInfo(name="fusion", kind="fusion"),),
            "explanation": None,
            "example": Example(record=RECORD, answer=_answer()),
        }
        return tiny.model_copy(update=changes)

    return write_bundle(folder, fill=fill, manifest=manifest)
