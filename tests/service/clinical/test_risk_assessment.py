"""POST /predict with Accept: application/fhir+json, and the RiskAssessments of every kind of task."""

from pathlib import Path
from typing import Any

import pytest

from service.bundle.manifest import RiskBand, TaskInfo
from service.clinical.extensions import CANONICAL, EXPERT, EXPLANATION, MISSING_INPUT, PREDICTED_VALUE, UNCERTAINTY
from service.clinical.risk_assessment import answer_document, qualitative_risk, risk_assessment, subject_of
from tests.service.api.in_process import Client, serving
from tests.service.clinical.clinical_bundle import write_clinical_bundle
from tests.service.clinical.fhir_check import assert_fhir
from tests.tiny_bundle import EXAMPLE_RISK, POISON, tiny_example, tiny_manifest

FHIR = {"Accept": "application/fhir+json"}


def asked(client: Client, document: Any, **headers: str) -> dict[str, Any]:
    """The FHIR answer to a good request."""
    response = client.post(json=document, headers={**FHIR, **headers})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/fhir+json; fhirVersion=4.0"
    answer: dict[str, Any] = response.json()
    assert_fhir(answer)
    return answer


def extensions(element: dict[str, Any], url: str) -> list[dict[str, Any]]:
    """The extensions of an element by URL."""
    return [one for one in element.get("extension", []) if one["url"] == url]


def part(extension: dict[str, Any], name: str) -> Any:
    """The value of a part of an extension."""
    (found,) = [one for one in extension["extension"] if one["url"] == name]
    (value,) = [item for key, item in found.items() if key.startswith("value")]
    return value


def test_one_instance_is_a_risk_assessment_with_the_risk_in_percent(client: Client) -> None:
    """Status, subject, model, outcome, risk, band, sentence and disclaimer are where FHIR has them."""
    answer = asked(client, {"instances": [tiny_example()]})
    assert answer["resourceType"] == "RiskAssessment"
    assert answer["status"] == "final"
    assert answer["subject"] == {"type": "Patient", "identifier": {"value": "stay-1"}}
    assert answer["method"]["text"] == "I2MoE model tiny, version 1.0.0"
    (device,) = answer["contained"]
    assert answer["performer"]["reference"] == f"#{device['id']}"
    sha256 = client.runtime.require_model().bundle.sha256
    assert [version["value"] for version in device["version"]] == ["1.0.0", sha256]
    assert answer["basis"] == [{"display": "labs: crea, sod"}, {"display": "history: age, sex"}]
    (prediction,) = answer["prediction"]
    assert prediction["outcome"] == {"text": "death within one year"}
    assert prediction["probabilityDecimal"] == pytest.approx(100 * EXAMPLE_RISK, abs=1e-4)
    assert prediction["qualitativeRisk"]["text"] == prediction["qualitativeRisk"]["coding"][0]["code"] == "high"
    assert prediction["rationale"].startswith("Risk of death within one year: 51 %")
    assert answer["note"][0]["text"] == "Research use. Not for clinical decisions."


def test_the_explanation_is_in_extensions(client: Client) -> None:
    """Every expert with weight and contribution; the set and the flags; what was missing."""
    plain = client.predict({"labs": {"crea": 4.0}})["predictions"][0]
    answer = asked(client, {"labs": {"crea": 4.0}})
    (prediction,) = answer["prediction"]
    experts = extensions(prediction, EXPERT.url)
    for told, expert in zip(plain["explanation"]["experts"], experts, strict=True):
        assert part(expert, "name") == told["name"]
        assert part(expert, "weight") == told["weight"]
        assert part(expert, "contribution") == told["contribution"]
        assert part(expert, "answer") == pytest.approx(100 * told["probability"], abs=1e-4)
    (explanation,) = extensions(prediction, EXPLANATION.url)
    assert part(explanation, "dominant") == plain["explanation"]["dominant"]
    (uncertainty,) = extensions(prediction, UNCERTAINTY.url)
    assert part(uncertainty, "abstain") is plain["uncertainty"]["abstain"]
    assert [one["valueString"] for one in uncertainty["extension"] if one["url"] == "set"] == plain["uncertainty"]["set"]
    assert [one["valueString"] for one in extensions(answer, MISSING_INPUT.url)] == plain["missing"] == ["labs.sod", "history"]


def test_several_instances_are_a_bundle_with_outcomes_among_them(poisoned: Client) -> None:
    """Good, bad and failing records keep their order; no text repeats a value."""
    bad = {"id": "b", "labs": {"crea": "ZQX7731"}}
    answer = asked(poisoned, {"instances": [tiny_example(), bad, {"labs": {"crea": POISON}}]})
    assert answer["type"] == "collection"
    kinds = [entry["resource"]["resourceType"] for entry in answer["entry"]]
    assert kinds == ["RiskAssessment", "OperationOutcome", "OperationOutcome"]
    invalid, failed = (entry["resource"]["issue"][0] for entry in answer["entry"][1:])
    assert (invalid["code"], failed["code"]) == ("invalid", "exception")
    assert "record b" in invalid["details"]["text"]
    assert "labs.crea: must be a number, found a string" in invalid["diagnostics"]
    assert "ZQX7731" not in str(answer)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of a model that fails on one creatinine."""
    path: Path = write_clinical_bundle(tmp_path_factory.mktemp("bundles") / "poisoned", poisoned=True)
    with serving(path, max_body_bytes=10_000) as client:
        yield client


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"json": {}}, 422, "invalid"),
        ({"json": {"labs": {"crea": "x", "sod": "y"}}}, 422, "invalid"),
        ({"content": b"{"}, 400, "structure"),
        ({"content": b" " * 20_000}, 413, "too-long"),
        ({"json": {"labs": {"crea": POISON}}}, 500, "exception"),
    ],
)
def test_refusals_are_operation_outcomes(poisoned: Client, request_: dict[str, Any], status: int, code: str) -> None:
    """The same status as in JSON, the request id in the header, one issue per place."""
    response = poisoned.post(headers=FHIR, **request_)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("application/fhir+json")
    assert response.headers["x-request-id"]
    assert_fhir(response.json())
    assert {issue["code"] for issue in response.json()["issue"]} == {code}


def test_refusals_by_the_framework_are_operation_outcomes_too(client: Client) -> None:
    """A wrong method, reworded by the middleware."""
    response = client.request("GET", "/predict", headers=FHIR)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["issue"][0]["code"] == "not-supported"


@pytest.mark.parametrize(
    ("accept", "is_fhir"),
    [
        ("application/fhir+json", True),
        ("application/fhir+json; fhirVersion=4.0, */*;q=0.1", True),
        ("application/json, application/fhir+json", True),
        ("application/json, application/fhir+json;q=0.5", False),
        ("application/fhir+json;q=0.5, */*", False),
        ("application/fhir+json;q=0.5, application/*;q=0.4, */*", True),
        ("application/fhir+json;q=0", False),
        ("application/fhir+json;q=x", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_fhir_is_answered_to_who_wants_it_at_least_as_much_as_json(client: Client, accept: str, is_fhir: bool) -> None:
    """Qualities are minded; without a wish the answer is plain JSON."""
    answer = client.post(json=tiny_example(), headers={"Accept": accept}).json()
    assert ("resourceType" in answer) is is_fhir


@pytest.mark.parametrize(
    ("record_id", "subject"),
    [
        ("Patient/a.b-1", {"reference": "Patient/a.b-1", "type": "Patient"}),
        ("https://ehr.example/fhir/Patient/7", {"reference": "https://ehr.example/fhir/Patient/7", "type": "Patient"}),
        ("Patient/", {"type": "Patient", "identifier": {"value": "Patient/"}}),
        (17, {"type": "Patient", "identifier": {"value": "17"}}),
        (" ", {"type": "Patient", "display": "A patient whose identity was not sent"}),
        (None, {"type": "Patient", "display": "A patient whose identity was not sent"}),
    ],
)
def test_the_subject_comes_from_the_records_id(record_id: Any, subject: dict[str, Any]) -> None:
    """A reference where the id looks like one, else an identifier, else a patient nobody named."""
    assert subject_of(record_id) == subject


def test_without_an_explanation_there_is_no_rationale(client: Client) -> None:
    """`explain: false` leaves sentence and experts out, never the risk."""
    (prediction,) = asked(client, {"instances": [tiny_example()], "explain": False})["prediction"]
    assert "rationale" not in prediction
    assert not extensions(prediction, EXPERT.url)
    assert prediction["probabilityDecimal"] > 0


EXPERTS = [
    {
        "name": "synergy",
        "kind": "synergy",
        "modality": None,
        "weight": 1.0,
        "probability": 0.5,
        "logits": [0.1, 0.2, 0.3],
        "contribution": -0.1,
        "contribution_share": 1.0,
        "features": [{"name": "labs.crea", "attribution": -0.2}],
        "rest": 0.1,
        "base": 0.0,
        "gap": 0.0,
    }
]


def prediction_of(**changes: Any) -> dict[str, Any]:
    """A prediction as /predict answers it."""
    return {
        "id": 3,
        "status": "ok",
        "label": "b",
        "probability": 0.7,
        "probabilities": {"a": 0.2, "b": 0.7, "c": 0.1},
        "risk_band": None,
        "explanation": {"dominant": "synergy", "agreement": 1.0, "summary": "S.", "experts": EXPERTS},
        "missing": [],
        "warnings": ["labs.crea 99 is outside the range seen in training (1 to 2)"],
        **changes,
    }


def assessment(task: TaskInfo, prediction: dict[str, Any]) -> dict[str, Any]:
    """The RiskAssessment of a prediction of another kind of task."""
    manifest = tiny_manifest({}).model_copy(update={"task": task})
    answer = risk_assessment(prediction, manifest=manifest, sha256="0" * 64, occurrence="2026-01-01T00:00:00Z")
    assert_fhir(answer)
    return answer


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_every_label_is_a_prediction_of_its_own(kind: Any) -> None:
    """Each with its probability; the predicted one carries the explanation."""
    answer = assessment(TaskInfo(kind=kind, labels=("a", "b", "c"), outcome="diagnosis"), prediction_of())
    assert [one["outcome"]["text"] for one in answer["prediction"]] == ["diagnosis: a", "diagnosis: b", "diagnosis: c"]
    assert [one["probabilityDecimal"] for one in answer["prediction"]] == [20.0, 70.0, 10.0]
    assert ["rationale" in one for one in answer["prediction"]] == [False, True, False]
    (expert,) = extensions(answer["prediction"][1], EXPERT.url)
    assert [one["url"] for one in expert["extension"] if one["url"] == "logit"] == ["logit"] * 3
    assert answer["note"][1]["text"].startswith("labs.crea 99 is outside")


def test_regression_has_a_value_and_no_probability() -> None:
    """The value and its interval are in extensions, since FHIR has no element for them."""
    task = TaskInfo(kind="regression", labels=("days",), outcome="length of stay", training_mean=4.0)
    told = {"interval": [3.0, None], "coverage": 0.9, "half_width": 2.0, "disagreement": None, "abstain": False}
    answer = assessment(
        task,
        prediction_of(
            label="days", probability=7.25, probabilities={"days": 7.25}, uncertainty={**told, "experts_disagree": None}
        ),
    )
    (prediction,) = answer["prediction"]
    assert "probabilityDecimal" not in prediction
    assert extensions(prediction, PREDICTED_VALUE.url)[0]["valueDecimal"] == 7.25
    (uncertainty,) = extensions(prediction, UNCERTAINTY.url)
    assert part(uncertainty, "low") == 3.0
    assert [one["url"] for one in uncertainty["extension"]] == ["low", "coverage", "half-width", "abstain"]


@pytest.mark.parametrize(
    ("names", "levels"),
    [
        (("low", "moderate", "high", "very high"), ("low", "moderate", "high", "high")),
        (("very low", "medium", "critical"), ("negligible", "moderate", "high")),
        (("green", "yellow", "red"), ("low", "moderate", "high")),
        (("no alert", "alert"), ("low", "moderate")),
        (("Low", "certain"), ("low", "moderate")),
    ],
)
def test_bands_are_told_in_fhirs_words(names: tuple[str, ...], levels: tuple[str, ...]) -> None:
    """By name where it is one of FHIR's, else by place; never certain."""
    bands = tuple(RiskBand(name=name, below=(i + 1) / len(names)) for i, name in enumerate(names))
    task = TaskInfo(kind="binary", labels=("no", "yes"), outcome="event", risk_bands=bands)
    told = [qualitative_risk(name, task) for name in names]
    assert tuple(level["coding"][0]["code"] for level in told if level) == levels
    assert tuple(level["text"] for level in told if level) == names


def test_a_single_failed_record_is_an_outcome() -> None:
    """Whatever is answered alone needs no Bundle."""
    failed = {"id": None, "status": "error", "error": {"code": "INFERENCE_FAILED", "message": "failed", "detail": []}}
    answer = answer_document([failed], manifest=tiny_manifest({}), sha256="0" * 64)
    assert_fhir(answer)
    assert answer["issue"][0]["diagnostics"] == "failed"


def test_canonical_urls_can_belong_to_nobody_else() -> None:
    """Their domain is reserved."""
    assert CANONICAL.split("/")[2].endswith(".example")
