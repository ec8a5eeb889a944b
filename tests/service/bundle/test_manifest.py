"""manifest.json: what it must hold, and which contradictions are refused."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.manifest import CalibrationInfo, ExpertInfo, FileInfo, Manifest, MetricValue, RiskBand, TaskInfo
from tests.tiny_bundle import tiny_manifest

FILES = {name: FileInfo(sha256="0" * 64, bytes=0) for name in ("model.onnx", "reference.json")}


def document() -> dict[str, Any]:
    """A good manifest as plain data."""
    return tiny_manifest(FILES).model_dump(mode="json")


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good manifest with one value changed."""
    whole = document()
    *parents, last = path.split(".")
    part = whole
    for key in parents:
        part = part[int(key) if isinstance(part, list) else key]
    part[int(last) if isinstance(part, list) else last] = deepcopy(value)
    return whole


def test_a_manifest_survives_json() -> None:
    """What is written is what is read."""
    manifest = tiny_manifest(FILES)
    assert manifest == Manifest.model_validate_json(manifest.model_dump_json(indent=1))


@given(st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_json_bit_for_bit(threshold: float, value: float) -> None:
    """No digit of a metric or of a calibration is lost on the way."""
    metric = MetricValue(value=value, low=threshold)
    assert metric == MetricValue.model_validate_json(metric.model_dump_json())
    calibration = CalibrationInfo(method="x", scale=(value,), bias=(threshold,), num_rows=1)
    assert calibration == CalibrationInfo.model_validate_json(calibration.model_dump_json())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_cannot_hold_is_refused_when_it_is_made(value: float) -> None:
    """A metric that is not a number would be written as null and never read again."""
    with pytest.raises(ValidationError, match="finite"):
        MetricValue(value=value)


BAND = {"name": "low", "below": 0.2}
CONTRADICTIONS = {
    "an unknown key": ("surprise", 1, "Extra inputs"),
    "an unknown key of a part": ("task.surprise", 1, "Extra inputs"),
    "a name that is a path": ("name", "../x", "pattern"),
    "a hash that is none": ("files.model.onnx", None, "dictionary"),
    "another input name": ("graph.inputs.0.name", "lab", r"graph inputs \[\('lab', 2\), .* differ from .*\('labs', 2\)"),
    "another input width": ("graph.inputs.1.shape", ["batch", 3], r"\('history', 3\)\] differ from"),
    "a scalar input": ("graph.inputs.1.shape", [], "at least 1 item"),
    "another dtype": ("graph.inputs.0.dtype", "float16", "'float32'"),
    "inputs in another order": ("graph.inputs", list(reversed(document()["graph"]["inputs"])), "differ from"),
    "a missing output": (
        "graph.outputs",
        document()["graph"]["outputs"][:3],
        r"expected graph outputs .*'expert_logits'\], found",
    ),
    "a calibration of another width": (
        "calibration.scale",
        [1.0],
        "expected calibration for 2 labels, found 1 scales and 2 biases",
    ),
    "a bias of another width": ("calibration.bias", [1.0], "found 2 scales and 1 biases"),
    "an expert twice": ("experts.1", document()["experts"][0], "expected distinct experts"),
    "an expert of no modality": ("experts.0.modality", "notes", "experts of modalities .'notes'., which are not among"),
    "no expert": ("experts", [], "at least 1"),
    "bands that fall": ("task.risk_bands", [{"name": "a", "below": 1.0}, BAND], "must rise and end at 1.0"),
    "bands that end early": ("task.risk_bands", [BAND], r"must rise and end at 1.0, found \[0.2\]"),
    "a band twice": ("task.risk_bands", [BAND, BAND, {"name": "b", "below": 1.0}], "must rise"),
    "a threshold of one": ("task.threshold", 1.0, "less than 1"),
    "an example that does not fit": ("example.record.labs.crea", "31415926", "labs.crea: must be a number, found a string"),
    "an example without values": ("example.record", {"id": "x"}, "has no value that the model knows"),
    "an answer of another shape": (
        "example.answer.prediction",
        [1.0],
        r"expected an example answer of shapes .*, found .*\(1,\)",
    ),
    "a ragged answer": ("example.answer.expert_logits.0", [1.0], "inhomogeneous"),
    "an array larger than memory": (
        "features.modalities.0.features.0",
        {"name": "scan", "kind": "array", "shape": [10**6, 10**6]},
        "expected 16777216 columns at most in all modalities, found 1000000000003",
    ),
    "a feature of unknown kind": ("features.modalities.0.features.0.kind", "date", "does not match any of the expected tags"),
}


@pytest.mark.parametrize("case", list(CONTRADICTIONS))
def test_a_manifest_that_contradicts_itself_is_refused(case: str) -> None:
    """Every contradiction is refused with what was expected and found, and no value of the example is repeated."""
    path, value, words = CONTRADICTIONS[case]
    parts = document()
    if case == "a hash that is none":
        parts["files"]["model.onnx"] = value
    else:
        parts = changed(path, value)
    with pytest.raises(ValidationError, match=words) as caught:
        Manifest.model_validate(parts)
    assert "31415926" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "labels", "fits"),
    [
        ("binary", ("a", "b"), True),
        ("binary", ("a",), False),
        ("binary", ("a", "b", "c"), False),
        ("binary", ("a", "a"), False),
        ("multiclass", ("a", "b"), True),
        ("multiclass", ("a",), False),
        ("multiclass", (), False),
        ("multilabel", ("a",), True),
        ("multilabel", ("a", "b", "a"), False),
        ("regression", ("a",), True),
        ("regression", ("a", "b"), False),
    ],
)
def test_a_task_has_the_labels_of_its_kind(kind: str, labels: tuple[str, ...], fits: bool) -> None:
    """Two labels are binary, one is a regression, and no label is named twice."""
    parts = {"kind": kind, "labels": labels, "outcome": "x", "training_mean": 1.0 if kind == "regression" else None}
    if fits:
        assert TaskInfo.model_validate(parts).labels == labels
    else:
        with pytest.raises(ValidationError, match="labels"):
            TaskInfo.model_validate(parts)


def test_a_regression_knows_its_training_mean() -> None:
    """Contributions of a regression are told against the training mean, which no other task has."""
    with pytest.raises(ValidationError, match="training_mean"):
        TaskInfo(kind="regression", labels=("x",), outcome="x")
    with pytest.raises(ValidationError, match="training_mean"):
        TaskInfo(kind="binary", labels=("x", "y"), outcome="x", training_mean=0.5)


def test_bands_are_of_risks() -> None:
    """Only a binary task has a risk to put into bands."""
    with pytest.raises(ValidationError, match="risk bands belong to binary tasks, found multiclass"):
        TaskInfo(kind="multiclass", labels=("x", "y"), outcome="x", risk_bands=(RiskBand(name="all", below=1.0),))


def test_a_uniqueness_expert_has_a_modality() -> None:
    """A uniqueness expert belongs to one modality, the others to all."""
    with pytest.raises(ValidationError, match="a uniqueness expert with modality None"):
        ExpertInfo(name="unique:labs", kind="uniqueness")
    with pytest.raises(ValidationError, match="a synergy expert with modality labs"):
        ExpertInfo(name="synergy", kind="synergy", modality="labs")


def test_numpy_floats_become_plain_numbers() -> None:
    """Figures computed with numpy are written as JSON numbers."""
    assert MetricValue(value=np.float64(0.5)).model_dump_json() == '{"value":0.5,"low":null,"high":null}'
