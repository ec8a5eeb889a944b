"""Bundles of every kind of task, with every kind of feature, and with names that try to be markup.

expert logits = columns @ mix + offset, missing columns 0     logits = mean over experts
prediction = softmax, sigmoid or nothing of the logits
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle.card import ModelCard
from service.bundle.explanation import calibrate, explain_dataset
from service.bundle.manifest import (
    FORMAT_VERSION,
    Answer,
    CalibrationInfo,
    Example,
    ExpertInfo,
    FileInfo,
    GraphInfo,
    Manifest,
    Parity,
    RiskBand,
    TaskInfo,
    TensorInfo,
    UncertaintyInfo,
)
from service.bundle.output import OUTPUT_NAMES, Output
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

MARKUP = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"'&"
BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
STAGES = TaskInfo(kind="multiclass", labels=("CN", "MCI", "AD"), outcome="stage")
GENRES = TaskInfo(kind="multilabel", labels=("drama", "comedy"), outcome="genre")
DAYS = TaskInfo(kind="regression", labels=("days",), outcome="length of stay in days", training_mean=5.0)
SINGLE = (ExpertInfo(name="fusion", kind="fusion"),)

_ACTIVATION = {"binary": "Softmax", "multiclass": "Softmax", "multilabel": "Sigmoid", "regression": "Identity"}
_METHOD: dict[str, Any] = {"multilabel": "per label", "regression": "absolute residual"}


def schema(label: str = "") -> FeatureSchema:
    """Three modalities, with a feature of every kind; `label` stands in the names, unit and words."""
    numeric = NumericFeature(name=f"crea{label}", unit=f"mg/dL{label}", minimum=0.5, maximum=10.0)
    category = CategoricalFeature(name=f"sex{label}", vocabulary=("female", f"male{label}"))
    codes = CodesFeature(name=f"dx{label}", vocabulary=("I10", f"E11{label}"))
    text = TextFeature(name=f"note{label}", vocabulary=("fever", "pain"), idf=(1.0, 1.5))
    return FeatureSchema(
        modalities=(
            Modality(name="labs", features=(numeric, category)),
            Modality(name="history", features=(codes, text)),
            Modality(name="image", features=(ArrayFeature(name=f"scan{label}", shape=(2, 2)),)),
        )
    )


def record(label: str = "") -> dict[str, Any]:
    """A record that holds everything."""
    return {
        "id": f"stay{label}",
        "labs": {f"crea{label}": 2.0, f"sex{label}": f"male{label}"},
        "history": {f"dx{label}": ["I10"], f"note{label}": "fever and pain"},
        "image": {f"scan{label}": [[0.1, 0.2], [0.3, 0.4]]},
    }


def experts() -> tuple[ExpertInfo, ...]:
    """One per modality, synergy and redundancy."""
    unique = [ExpertInfo(name=f"unique:{m.name}", kind="uniqueness", modality=m.name) for m in schema().modalities]
    return (*unique, ExpertInfo(name="synergy", kind="synergy"), ExpertInfo(name="redundancy", kind="redundancy"))


def write_task_bundle(folder: Path, task: TaskInfo, *, infos: Sequence[ExpertInfo] | None = None, label: str = "") -> Bundle:
    """Write a bundle of this task. `label` stands in every name that a bundle may choose freely."""
    infos = experts() if infos is None else tuple(infos)
    model = _Model(schema(label), task, len(infos))

    def fill(staged: Path) -> None:
        onnx.save(model.graph(), staged / MODEL_FILE)
        (staged / REFERENCE_FILE).write_text(json.dumps(_reference(infos)))

    return write_bundle(folder, fill=fill, manifest=lambda files: _manifest(files, model, infos, label))


def hostile_task() -> TaskInfo:
    """A task whose every word is markup."""
    band = RiskBand(name=f"low{MARKUP}", below=1.0)
    return TaskInfo(kind="binary", labels=(f"alive{MARKUP}", f"dead{MARKUP}"), outcome=f"death{MARKUP}", risk_bands=(band,))


class _Model:
    """The formulas of this module."""

    def __init__(self, features: FeatureSchema, task: TaskInfo, num_experts: int) -> None:
        self.features, self.task, self.num_experts = features, task, num_experts
        self.num_columns = sum(modality.width for modality in features.modalities)
        shape = (self.num_columns, num_experts * len(task.labels))
        self.mix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        self.calibration = CalibrationInfo(
            method="none", scale=(1.0,) * len(task.labels), bias=(0.0,) * len(task.labels), num_rows=0
        )

    def answer(self, arrays: dict[str, NDArray[np.float32]]) -> Output:
        columns = np.nan_to_num(np.concatenate([arrays[name] for name in self.features.names], axis=1))
        logits_BEC = (columns @ self.mix).reshape(len(columns), self.num_experts, -1)
        weights = np.full(logits_BEC.shape[:2], 1 / self.num_experts, np.float32)
        logits = (weights[:, :, None] * logits_BEC).sum(axis=1)
        return Output(calibrate(logits, self.task, self.calibration), logits, weights, logits_BEC)

    def graph(self) -> onnx.ModelProto:
        names = self.features.names
        axis = {"axis": -1} if _ACTIVATION[self.task.kind] == "Softmax" else {}
        nodes = [
            *(helper.make_node("IsNaN", [name], [f"{name}_missing"]) for name in names),
            *(helper.make_node("Where", [f"{name}_missing", "zero", name], [f"{name}_filled"]) for name in names),
            helper.make_node("Concat", [f"{name}_filled" for name in names], ["columns"], axis=1),
            helper.make_node("MatMul", ["columns", "mix"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["expert_logits"]),
            helper.make_node("Shape", ["columns"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", "num_experts"], ["weight_shape"], axis=0),
            helper.make_node("Expand", ["weight", "weight_shape"], ["expert_weights"]),
            helper.make_node("ReduceMean", ["expert_logits"], ["logits"], axes=[1], keepdims=0),
            helper.make_node(_ACTIVATION[self.task.kind], ["logits"], ["prediction"], **axis),
        ]
        constants: dict[str, NDArray[Any]] = {
            "zero": np.zeros(1, np.float32),
            "mix": self.mix,
            "shape": np.array([-1, self.num_experts, len(self.task.labels)], np.int64),
            "num_experts": np.array([self.num_experts], np.int64),
            "weight": np.array([[1 / self.num_experts]], np.float32),
        }
        inputs, outputs = ([_value(info) for info in infos] for infos in (self.inputs, self.outputs))
        initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "task", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(name=m.name, shape=("batch", m.width)) for m in self.features.modalities)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        labels, number = len(self.task.labels), self.num_experts
        shapes: tuple[tuple[int, ...], ...] = ((labels,), (labels,), (number,), (number, labels))
        return tuple(TensorInfo(name=n, shape=("batch", *shape)) for n, shape in zip(OUTPUT_NAMES, shapes, strict=True))


def _value(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, TensorProto.FLOAT, list(info.shape))


def _reference(infos: Sequence[ExpertInfo]) -> dict[str, Any]:
    histogram = {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [3, 5, 1, 0]}
    return {"prediction": histogram, "expert_weights": {info.name: histogram for info in infos}}


def _uncertainty(task: TaskInfo) -> UncertaintyInfo:
    width = len(task.labels)
    return UncertaintyInfo(
        method=_METHOD.get(task.kind, "class-conditional"),
        coverage=0.9,
        guarantee="exact",
        num_rows=40,
        thresholds=(2.5,) if task.kind == "regression" else (0.6,) * width,
        thresholds_absent=(0.3,) * width if task.kind == "multilabel" else (),
        disagreement_limit=0.5,
    )


def _manifest(files: dict[str, FileInfo], model: _Model, infos: tuple[ExpertInfo, ...], label: str) -> Manifest:
    task, example = model.task, record(label)
    output = model.answer(model.features.encode_many([example]))
    target = {"regression": np.float32([4.0]), "multilabel": np.ones((1, len(task.labels)))}.get(task.kind, np.array([0]))
    answer = Answer.model_validate({name: getattr(output, name)[0].tolist() for name in OUTPUT_NAMES})
    words = ("intended_use", "population", "exclusions", "limits", "data", "licence", "developer", "funding")
    return Manifest(
        format_version=FORMAT_VERSION,
        name=f"task-{task.kind}",
        version=f"1{label}",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        files=files,
        graph=GraphInfo(opset=17, precision="fp32", target="cpu", inputs=model.inputs, outputs=model.outputs),
        features=model.features,
        task=task,
        experts=infos,
        calibration=model.calibration,
        explanation=explain_dataset(output, target, task=task, calibration=model.calibration, experts=infos, split="test"),
        uncertainty=_uncertainty(task),
        model_card=ModelCard.model_validate(dict.fromkeys(words, f"Tests. {label}")),
        parity=Parity(atol=1e-4, max_abs_diff=1e-7, cases=1),
        example=Example(record=example, answer=answer),
    )
