"""The predictions a client reads."""

import json
from typing import Any

import numpy as np
import pytest

from service.bundle.answers import Answers, Explained, build_refusal
from service.bundle.errors import InvalidRecordError
from service.bundle.explanation import calibrate
from service.bundle.manifest import FileInfo, Manifest, TaskInfo
from service.bundle.output import Output
from tests.tiny_bundle import EXAMPLE_RISK, EXPERTS, WEIGHTS, tiny_example, tiny_manifest, tiny_output

MANIFEST = tiny_manifest({"model.onnx": FileInfo(sha256="0" * 64, bytes=0)})


def predictions(*records: dict[str, Any], with_explanation: bool = True) -> list[dict[str, Any]]:
    """Answers of the tiny model."""
    encoded = [MANIFEST.features.encode(record) for record in records]
    output = tiny_output(**MANIFEST.features.stack([record.arrays for record in encoded]))
    ids = [record.get("id") for record in records]
    return Explained.of(output, MANIFEST).answers().predictions(encoded, ids, with_explanation=with_explanation)


def test_the_example_is_told_as_computed_by_hand() -> None:
    """Every field of one answer, as the docstring of the tiny bundle computes it."""
    (told,) = predictions(tiny_example())
    explanation = told.pop("explanation")
    assert told == {
        "id": "stay-1",
        "status": "ok",
        "label": "dead",
        "probability": EXAMPLE_RISK,
        "probabilities": {"alive": pytest.approx(1 - EXAMPLE_RISK, abs=1e-6), "dead": EXAMPLE_RISK},
        "risk_band": "high",
        "missing": [],
        "warnings": [],
    }
    assert explanation["summary"] == (
        "Risk of death within one year: 51 % (high); the strongest evidence, labs on its own (38 % of all evidence), "
        "points towards dead; 3 of 4 experts alone would say dead."
    )
    assert (explanation["dominant"], explanation["agreement"]) == ("unique:labs", 0.75)
    experts = explanation["experts"]
    assert tuple(expert["name"] for expert in experts) == EXPERTS
    assert tuple(expert["weight"] for expert in experts) == WEIGHTS
    assert [expert["contribution"] for expert in experts] == [0.8, 0.6, 0.6, 0.1]
    assert [expert["contribution_share"] for expert in experts] == [0.380952, 0.285714, 0.285714, 0.047619]
    assert [expert["logits"] for expert in experts] == [[0, 2], [0, 2], [0, 3], [0, 1]]
    assert [expert["probability"] for expert in experts] == [0.5, 0.5, 0.622459, 0.377541]
    assert [(expert["kind"], expert["modality"]) for expert in experts] == [
        ("uniqueness", "labs"),
        ("uniqueness", "history"),
        ("synergy", None),
        ("redundancy", None),
    ]


def test_the_risk_is_the_events_whatever_is_predicted() -> None:
    """In binary tasks `probability` is the risk, also of a patient predicted to live."""
    (told,) = predictions({"labs": {"crea": 1.0}, "history": {"age": 60}})
    assert told["label"] == "alive"
    assert told["probability"] == told["probabilities"]["dead"]
    assert told["probability"] < 0.5
    assert sum(told["probabilities"].values()) == pytest.approx(1.0, abs=2e-6)


def test_answers_keep_the_order_and_stay_with_their_records() -> None:
    """Each record's id, gaps and warnings come with its own answer."""
    first, second = predictions({"id": "a", "labs": {"crea": 99}}, {"id": "b", "labs": {"crea": 1, "sod": 140}})
    assert (first["id"], first["missing"]) == ("a", ["labs.sod", "history"])
    assert first["warnings"] == ["labs.crea 99 is outside the range seen in training (0.5 to 10)"]
    assert (second["id"], second["missing"], second["warnings"]) == ("b", ["history"], [])
    assert first["probability"] > second["probability"]


def test_an_explanation_can_be_left_out() -> None:
    """Without explanation the rest is the same."""
    (short,), (whole,) = predictions(tiny_example(), with_explanation=False), predictions(tiny_example())
    del whole["explanation"]
    assert short == whole


def test_answers_in_arrays_hold_the_same_arrays_and_no_lists() -> None:
    """What is not wanted in full has nothing that is told one by one, whole, in parts and joined; its arrays are the same."""
    explained = Explained.of(tiny_output(np.float32([[4, 140], [1, 140]]), np.float32([[70, 1], [60, 0]])), MANIFEST)
    full, arrays = explained.answers(), explained.answers(in_full=False)
    parts = Answers.join([arrays.rows(slice(0, 1)), arrays.rows(slice(1, 2))])
    assert (len(full), len(arrays), len(parts)) == (2, 2, 2)
    assert list(arrays.records) == list(parts.records) == [None, None]
    assert None not in full.records
    for found in (arrays, parts):
        np.testing.assert_array_equal(found.contribution, full.contribution)
        np.testing.assert_array_equal(found.share, full.share)
        np.testing.assert_array_equal(found.label, full.label)
        for array, expected in zip(found.output.arrays, full.output.arrays, strict=True):
            np.testing.assert_array_equal(array, expected)
    with pytest.raises(ValueError, match="zip"):
        arrays.predictions([MANIFEST.features.encode(tiny_example())] * 2, [None] * 2)


def test_answers_are_plain_json() -> None:
    """No numpy number and no NaN is left in an answer."""
    told = predictions(tiny_example(), {"labs": {"crea": 1}})
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        (
            TaskInfo(kind="multiclass", labels=("CN", "MCI", "AD"), outcome="diagnosis"),
            [0.0, 50.0, 0.0],
            {"label": "MCI", "probability": 1.0, "risk_band": None, "probabilities": {"CN": 0.0, "MCI": 1.0, "AD": 0.0}},
        ),
        (
            TaskInfo(kind="multilabel", labels=("drama", "comedy"), outcome="genre"),
            [0.0, -50.0],
            {"label": "drama", "probability": 0.5, "risk_band": None, "probabilities": {"drama": 0.5, "comedy": 0.0}},
        ),
        (
            TaskInfo(kind="regression", labels=("days",), outcome="stay", training_mean=5.0),
            [7.25],
            {"label": "days", "probability": 7.25, "risk_band": None, "probabilities": {"days": 7.25}},
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, TaskInfo) else "",
)
def test_other_tasks_state_the_predicted_label(task: TaskInfo, logits: list[float], expected: dict[str, Any]) -> None:
    """Outside binary tasks the stated probability is the predicted label's, or the predicted value."""
    width = len(task.labels)
    calibration = MANIFEST.calibration.model_copy(update={"scale": (1.0,) * width, "bias": (0.0,) * width})
    manifest: Manifest = MANIFEST.model_copy(update={"task": task, "calibration": calibration})
    logits_BC = np.float32([logits])
    experts_BEC = np.repeat(logits_BC[:, None], len(EXPERTS), axis=1)
    output = Output(calibrate(logits_BC, task, calibration), logits_BC, np.float32([WEIGHTS]), experts_BEC)
    (told,) = Explained.of(output, manifest).answers().predictions([manifest.features.encode(tiny_example())], [None])
    assert expected == {key: told[key] for key in expected}
    assert [expert["probability"] for expert in told["explanation"]["experts"]] == [told["probability"]] * len(EXPERTS)


def test_a_refusal_stands_where_a_prediction_would() -> None:
    """A record that was not answered has the reason in the same place, in words and for programs."""
    with pytest.raises(InvalidRecordError) as caught:
        MANIFEST.features.encode({"labs": {"crea": "x"}})
    assert build_refusal("a", "INVALID_INPUT", str(caught.value), caught.value.problems) == {
        "id": "a",
        "status": "error",
        "error": {
            "code": "INVALID_INPUT",
            "message": "labs.crea: must be a number, found a string",
            "detail": [{"loc": ["labs", "crea"], "type": "number_type", "msg": "must be a number, found a string"}],
        },
    }
