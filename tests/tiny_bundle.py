"""A bundle whose every answer can be checked with a pencil. Built with onnx.helper; no torch, no training.

Features: labs = (crea, sod), history = (age, sex), where sex is 0 for female and 1 for male. A missing value becomes
crea 1, sod 140, age 60, female, inside the graph. Expert logits for (alive, dead), and constant expert weights:

    unique:labs      0.4   (0, crea - 2)
    unique:history   0.3   (0, (age - 60) / 10 + sex)
    synergy          0.2   (0, crea - 2 + (age - 60) / 10)
    redundancy       0.1   ((sod - 140) / 10, 1)

    logits = sum of weight x expert logits       prediction = softmax(0.5 x logits + (0, -1))

The example (crea 4, sod 140, age 70, male): experts say dead with 2, 2, 3, 1, so the mixture says
0.4 x 2 + 0.3 x 2 + 0.2 x 3 + 0.1 x 1 = 2.1 and the risk is 1 / (1 + exp(1 - 0.5 x 2.1)) = 0.512497.
"""

from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle.card import ModelCard
from service.bundle.explanation import explain_dataset
from service.bundle.manifest import (
    FORMAT_VERSION,
    Answer,
    CalibrationInfo,
    Example,
    ExpertInfo,
    FileInfo,
    GraphInfo,
    Manifest,
    MetricValue,
    Parity,
    RiskBand,
    TaskInfo,
    TensorInfo,
    UncertaintyInfo,
)
from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.schema import CategoricalFeature, FeatureSchema, Modality, NumericFeature
from service.bundle.store import MODEL_FILE, REFERENCE_FILE, Bundle, write_bundle

Floats = NDArray[np.float32]

EXAMPLE: dict[str, Any] = {"id": "stay-1", "labs": {"crea": 4.0, "sod": 140.0}, "history": {"age": 70.0, "sex": "male"}}
EXAMPLE_RISK = 0.512497  # 1 / (1 + exp(-0.05))
EXPERTS = ("unique:labs", "unique:history", "synergy", "redundancy")
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
POISON = 9.75  # a creatinine within the range seen in training, for which the poisoned graph answers NaN

_OPSET = 17
_FILL = {"labs": (1.0, 140.0), "history": (60.0, 0.0)}
_SCALE, _BIAS = (0.5, 0.5), (0.0, -1.0)
# Columns (crea, sod, age, sex) by expert logits (4 experts x 2 labels), and what is added to them.
_MIX = np.zeros((4, 8), np.float32)
_MIX[0, [1, 5]] = 1.0  # crea
_MIX[1, 6] = 0.1  # sod
_MIX[2, [3, 5]] = 0.1  # age
_MIX[3, 3] = 1.0  # sex
_OFFSET = np.array([0, -2, 0, -6, 0, -8, -14, 1], np.float32)

TASK = TaskInfo(
    kind="binary",
    labels=("alive", "dead"),
    outcome="death within one year",
    risk_bands=(RiskBand(name="low", below=0.2), RiskBand(name="moderate", below=0.5), RiskBand(name="high", below=1.0)),
)
CALIBRATION = CalibrationInfo(method="temperature", scale=_SCALE, bias=_BIAS, num_rows=40)
EXPERT_INFOS = (
    ExpertInfo(name="unique:labs", kind="uniqueness", modality="labs"),
    ExpertInfo(name="unique:history", kind="uniqueness", modality="history"),
    ExpertInfo(name="synergy", kind="synergy"),
    ExpertInfo(name="redundancy", kind="redundancy"),
)


def tiny_example() -> dict[str, Any]:
    """A fresh copy of the example record."""
    return deepcopy(EXAMPLE)


def tiny_schema(*, missing: str = "learned") -> FeatureSchema:
    """Two modalities of two columns each."""
    labs = Modality(
        name="labs",
        features=(
            NumericFeature(name="crea", unit="mg/dL", minimum=0.5, maximum=10.0),
            NumericFeature(name="sod", unit="mmol/L", minimum=110.0, maximum=170.0),
        ),
    )
    history = Modality(
        name="history",
        features=(
            NumericFeature(name="age", unit="years", minimum=18.0, maximum=100.0),
            CategoricalFeature(name="sex", vocabulary=("female", "male")),
        ),
    )
    return FeatureSchema.model_validate({"modalities": (labs, history), "missing": missing})


def tiny_output(labs: Floats, history: Floats) -> Output:
    """What the graph answers for (B, 2) arrays, computed with numpy."""
    labs = np.where(np.isnan(labs), np.float32(_FILL["labs"]), labs)
    history = np.where(np.isnan(history), np.float32(_FILL["history"]), history)
    expert_logits = (np.concatenate([labs, history], axis=1) @ _MIX + _OFFSET).reshape(-1, 4, 2)
    expert_weights = np.repeat(np.array([WEIGHTS], np.float32), len(labs), axis=0)
    logits = (expert_weights[:, :, None] * expert_logits).sum(axis=1)
    scores = np.exp(logits * np.float32(_SCALE) + np.float32(_BIAS))
    return Output(scores / scores.sum(axis=1, keepdims=True), logits, expert_weights, expert_logits)


def tiny_graph(*, poisoned: bool = False) -> onnx.ModelProto:
    """The graph of the formulas in this module's docstring. Poisoned: NaN where creatinine is exactly `POISON`."""
    nodes = [node for name in _FILL for node in _filled(name)]
    mixed_input = "columns"
    nodes.append(helper.make_node("Concat", ["labs_filled", "history_filled"], ["columns"], axis=1))
    if poisoned:
        nodes.append(helper.make_node("Equal", ["columns", "poison"], ["is_poison"]))
        nodes.append(helper.make_node("Where", ["is_poison", "nan", "columns"], ["poisoned_columns"]))
        mixed_input = "poisoned_columns"
    nodes += [
        helper.make_node("MatMul", [mixed_input, "mix"], ["mixed"]),
        helper.make_node("Add", ["mixed", "offset"], ["flat_logits"]),
        helper.make_node("Reshape", ["flat_logits", "expert_shape"], ["expert_logits"]),
        helper.make_node("Shape", ["labs"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "num_experts"], ["weight_shape"], axis=0),
        helper.make_node("Expand", ["weights", "weight_shape"], ["expert_weights"]),
        helper.make_node("Unsqueeze", ["expert_weights", "last_axis"], ["weights_BE1"]),
        helper.make_node("Mul", ["weights_BE1", "expert_logits"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "expert_axis"], ["logits"], keepdims=0),
        helper.make_node("Mul", ["logits", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["prediction"], axis=-1),
    ]
    constants: dict[str, NDArray[Any]] = {
        **{f"{name}_fill": np.array(fill, np.float32) for name, fill in _FILL.items()},
        "mix": _MIX,
        "offset": _OFFSET,
        "expert_shape": np.array([-1, 4, 2], np.int64),
        "num_experts": np.array([4], np.int64),
        "weights": np.array([WEIGHTS], np.float32),
        "last_axis": np.array([2], np.int64),
        "expert_axis": np.array([1], np.int64),
        "scale": np.array(_SCALE, np.float32),
        "bias": np.array(_BIAS, np.float32),
    }
    if poisoned:
        constants |= {"poison": np.array(POISON, np.float32), "nan": np.array(np.nan, np.float32)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_tensor(name, ("batch", 2)) for name in _FILL],
        [_tensor(name, shape) for name, shape in zip(OUTPUT_NAMES, _OUTPUT_SHAPES, strict=True)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model


_OUTPUT_SHAPES: tuple[tuple[int | str, ...], ...] = (("batch", 2), ("batch", 2), ("batch", 4), ("batch", 4, 2))


def _filled(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("IsNaN", [name], [f"{name}_missing"]),
        helper.make_node("Where", [f"{name}_missing", f"{name}_fill", name], [f"{name}_filled"]),
    ]


def _tensor(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def tiny_answer() -> Answer:
    """The example's true answer."""
    output = tiny_output(np.array([[4.0, 140.0]], np.float32), np.array([[70.0, 1.0]], np.float32))
    return Answer.model_validate({name: getattr(output, name)[0].tolist() for name in OUTPUT_NAMES})


TINY_UNCERTAINTY = UncertaintyInfo(
    method="class-conditional",
    coverage=0.9,
    guarantee="exact",
    num_rows=40,
    thresholds=(0.6, 0.8),
    disagreement_limit=0.2,
)


def tiny_manifest(
    files: dict[str, FileInfo],
    *,
    answer: Answer | None = None,
    missing: str = "learned",
    uncertainty: UncertaintyInfo | None = None,
) -> Manifest:
    """The manifest of the tiny bundle around `files`."""
    return Manifest(
        format_version=FORMAT_VERSION,
        name="tiny",
        version="1.0.0",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        files=files,
        graph=_graph_info(),
        features=tiny_schema(missing=missing),
        task=TASK,
        experts=EXPERT_INFOS,
        calibration=CALIBRATION,
        metrics={"test": {"auroc": MetricValue(value=0.8, low=0.75, high=0.85)}},
        explanation=_dataset_explanation(),
        uncertainty=uncertainty,
        model_card=_MODEL_CARD,
        parity=Parity(atol=1e-4, max_abs_diff=1e-7, cases=3),
        example=Example(record=tiny_example(), answer=answer or tiny_answer()),
        provenance={"made_by": "tests/tiny_bundle.py"},
    )


_MODEL_CARD = ModelCard(
    intended_use="tests",
    population="nobody",
    exclusions="everybody",
    limits="invented coefficients",
    data="none",
    licence="MIT",
)


def _graph_info() -> GraphInfo:
    return GraphInfo(
        opset=_OPSET,
        precision="fp32",
        target="cpu",
        inputs=tuple(TensorInfo(name=name, shape=("batch", 2)) for name in _FILL),
        outputs=tuple(TensorInfo(name=name, shape=shape) for name, shape in zip(OUTPUT_NAMES, _OUTPUT_SHAPES, strict=True)),
    )


_ROWS = (  # crea, sod, age, sex, died
    (4.0, 140.0, 70.0, 1.0, 1),
    (1.0, 140.0, 60.0, 0.0, 0),
    (9.0, 130.0, 80.0, 0.0, 1),
    (2.0, 150.0, 40.0, 1.0, 0),
)


def _rows_output() -> tuple[Output, NDArray[np.intp]]:
    rows = np.array(_ROWS)
    return tiny_output(rows[:, :2].astype(np.float32), rows[:, 2:4].astype(np.float32)), rows[:, 4].astype(np.intp)


def _dataset_explanation() -> Any:
    output, died = _rows_output()
    return explain_dataset(output, died, task=TASK, calibration=CALIBRATION, experts=EXPERT_INFOS, split="test")


def tiny_reference() -> dict[str, Any]:
    """Histograms of risk and expert weights over four invented rows."""
    output, _ = _rows_output()
    edges = np.linspace(0.0, 1.0, 21)

    def histogram(values: Floats) -> dict[str, list[float]]:
        return {"edges": edges.tolist(), "counts": np.histogram(values, edges)[0].tolist()}

    weights = {name: histogram(output.expert_weights[:, e]) for e, name in enumerate(EXPERTS)}
    risks = {label: histogram(output.prediction[:, c]) for c, label in enumerate(TASK.labels)}
    missing = {f"{modality.name}.{feature.name}": 0.0 for modality in tiny_schema().modalities for feature in modality.features}
    return {"num_rows": len(output.prediction), "prediction": risks, "expert_weights": weights, "missing_rate": missing}


def write_tiny_bundle(
    folder: Path,
    *,
    poisoned: bool = False,
    answer: Answer | None = None,
    missing: str = "learned",
    uncertainty: UncertaintyInfo | None = None,
) -> Bundle:
    """Write the tiny bundle to `folder`, which must not exist yet.

    `poisoned`: one creatinine (`POISON`) makes the graph answer NaN. `answer`: another recorded answer than the true
    one, so that replaying the example fails. `missing`: "reject" refuses records without one of the modalities.
    `uncertainty`: without it the bundle does not say how sure its predictions are.
    """
    import json

    def fill(staged: Path) -> None:
        onnx.save(tiny_graph(poisoned=poisoned), staged / MODEL_FILE)
        (staged / REFERENCE_FILE).write_text(json.dumps(tiny_reference()))

    return write_bundle(
        folder, fill=fill, manifest=lambda files: tiny_manifest(files, answer=answer, missing=missing, uncertainty=uncertainty)
    )
