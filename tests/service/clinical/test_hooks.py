"""CDS Hooks 2.0 in this process: discovery, calls, feedback, refusals, browsers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.bundle.features import CategoricalFeature, CodesFeature, NumericFeature, TextFeature
from service.bundle.manifest import RiskBand, TaskInfo
from service.bundle.schema import FeatureSchema, Modality
from service.clinical.cards import MAX_SUMMARY, OVERRIDE_REASONS, build_card, indicator, pruned
from service.clinical.hooks import Cards, Discovery, Indicator
from service.clinical.prefetch import CODES_PER_QUERY, prefetch_templates, services
from service.clinical.record import MappedRecord
from service.clinical.routes import _read_hook
from service.clinical.settings import ClinicalSettings
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving, serving_clinical
from tests.service.clinical.clinical_bundle import (
    PATIENT,
    hook_call,
    observation,
    patient,
    searchset,
    whole_prefetch,
    write_clinical_bundle,
)
from tests.service.clinical.test_risk_assessment import prediction_of
from tests.tiny_bundle import EXAMPLE_RISK, POISON, tiny_manifest

VIEW = "/cds-services/tiny-patient-view"
DISCHARGE = "/cds-services/tiny-encounter-discharge"


def called(client: Client, prefetch: Any, path: str = VIEW, **changes: Any) -> list[dict[str, Any]]:
    """The cards of a call, checked against the wire format."""
    response = client.request("POST", path, json=hook_call(prefetch, **changes))
    assert response.status_code == 200, response.text
    Cards.model_validate(response.json())
    assert_nothing_is_empty(response.json()["cards"])
    cards: list[dict[str, Any]] = response.json()["cards"]
    return cards


def assert_nothing_is_empty(node: Any) -> None:
    """No null, empty text, list or object, which CDS Hooks forbids."""
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        assert item not in (None, "", [], {})
        assert_nothing_is_empty(item)


def test_the_services_are_named_after_the_model(client: Client) -> None:
    """One per hook, with queries for exactly what the schema needs."""
    answer = client.get("/cds-services").json()
    Discovery.model_validate(answer)
    assert [(one["hook"], one["id"]) for one in answer["services"]] == [
        ("patient-view", "tiny-patient-view"),
        ("encounter-discharge", "tiny-encounter-discharge"),
    ]
    (view, _) = answer["services"]
    assert view["prefetch"] == {
        "patient": "Patient/{{context.patientId}}",
        "observations1": "Observation?patient={{context.patientId}}&code="
        "http://loinc.org|2160-0,http://loinc.org|38483-4,http://loinc.org|14682-9,http://loinc.org|2951-2",
    }
    assert "never calls the FHIR server" in view["usageRequirements"]


def test_queries_are_split_where_a_model_has_many_codes() -> None:
    """No query holds more than a server takes, each code is asked for once; conditions and documents only where needed."""
    labs = [NumericFeature(name=f"n{i}", loinc=(f"{i}-1",), unit="1", minimum=0, maximum=1) for i in range(100, 150)]
    pressure = NumericFeature(name="bp", loinc=("8478-0",), unit="mm[Hg]", minimum=0, maximum=1)
    note = TextFeature(name="note", loinc=("18842-5",), vocabulary=("a",), idf=(1.0,))
    codes = CodesFeature(name="dx", grouping="icd", vocabulary=("icd10:I50",))
    sex = CategoricalFeature(name="sex", loinc=("46098-0",), vocabulary=("male",))
    templates = prefetch_templates(FeatureSchema(modalities=(Modality(name="m", features=(*labs, pressure, note, codes, sex)),)))
    asked = [re.findall(r"loinc\.org\|([0-9-]+)", query) for key, query in templates.items() if key.startswith("observations")]
    assert max(map(len, asked)) <= CODES_PER_QUERY
    assert max(map(len, templates.values())) < 600
    flat = [code for codes in asked for code in codes]
    assert len(set(flat)) == len(flat)
    assert {*(f"{i}-1" for i in range(100, 150)), "8478-0", "8480-6", "8462-4", "85354-9"} <= set(flat)
    assert "46098-0" not in flat
    assert templates["conditions"] == "Condition?patient={{context.patientId}}"
    assert templates["documents"].endswith("&type=http://loinc.org|18842-5")


def test_a_patient_gets_the_card_computed_by_hand(client: Client) -> None:
    """The tiny bundle's example as FHIR resources has the example's risk."""
    (card,) = called(client, whole_prefetch())
    assert card["summary"] == "Risk of death within one year: 51 % (high); the model is not sure"
    assert card["indicator"] == "critical"
    assert card["source"]["label"] == "tiny 1.0.0 (I2MoE)"
    told = card["extension"]["i2moe"]
    assert told["probability"] == pytest.approx(EXAMPLE_RISK, abs=1e-4)  # the age is some hours off 70
    assert told["model"]["name"] == "tiny"
    assert {"reference": "Observation/o-2160-0", "display": "labs.crea"} in told["basis"]
    assert {one["code"] for one in card["overrideReasons"]} == set(OVERRIDE_REASONS)
    detail = card["detail"]
    for expected in (
        "Risk of death within one year: 51 % (high); the strongest evidence",
        "| expert | alone | evidence | weight |",
        "| unique:labs |",
        "| redundancy |",
        "Caution: the model does not commit itself",
        "Research use. Not for clinical decisions",
    ):
        assert expected in detail
    assert "Not known" not in detail


def test_a_prediction_that_commits_itself_says_how_surely(client: Client) -> None:
    """What remains possible, and how often such a statement is right."""
    (card,) = called(client, {"observations1": searchset(observation("2160-0", 10, "mg/dL"))})
    assert card["summary"].endswith("(high)")
    assert "Remains possible: dead, and nothing else in 90 % of cases." in card["detail"]


def test_what_is_missing_remarkable_or_unusable_is_on_the_card(client: Client) -> None:
    """A person can see what the risk rests on and what not."""
    odd = observation("2951-2", 140, "furlong")
    (card,) = called(client, {"patient": None, "observations1": searchset(observation("2160-0", 14, "mg/dL"), odd)})
    detail = card["detail"]
    assert "labs.crea 14 is outside the range seen in training" in detail
    assert "- labs.sod" in detail
    assert "- history" in detail
    assert "Observation/o-2951-2 (labs.sod) is not in a unit that can be used" in detail
    assert "prefetch patient was not sent" in detail


def test_every_resource_is_read_whatever_its_key(client: Client) -> None:
    """A client that names its own keys is served."""
    (card,) = called(client, {"everything": searchset(patient(), *whole_prefetch()["observations1"]["entry"][0].values())})
    assert card["extension"]["i2moe"]["missing"] == ["labs.sod"]


@pytest.mark.parametrize(
    "prefetch", [None, {}, {"patient": None, "observations1": None}, {"observations1": {"resourceType": "OperationOutcome"}}]
)
def test_without_prefetch_the_answer_is_412_with_what_is_missing(client: Client, prefetch: Any) -> None:
    """Each key with its query; nothing is fetched, whatever fhirServer says."""
    server = {"fhirServer": "http://169.254.169.254/fhir", "fhirAuthorization": {"access_token": "t"}}
    response = client.request("POST", VIEW, json=hook_call(prefetch, **server))
    error = assert_error(response, 412, "DATA_MISSING")
    assert [place["loc"] for place in error["detail"]] == [["prefetch", "patient"], ["prefetch", "observations1"]]
    assert "Patient/{{context.patientId}}" in error["detail"][0]["msg"]


def test_a_patient_of_whom_nothing_is_known_gets_no_card(client: Client) -> None:
    """Everything was sent, and there is nothing in it: no guidance."""
    nobody = {"resourceType": "Patient", "id": PATIENT}
    assert called(client, {"patient": nobody, "observations1": searchset()}) == []
    assert client.metric('i2moe_cds_cards_total{indicator="none"}') >= 1


@pytest.mark.parametrize(
    ("conditions", "missing", "told"),
    [
        (searchset(), [], ()),
        (
            searchset() | {"link": [{"relation": "next", "url": "x"}]},
            [],
            ("prefetch conditions has more pages, which were not sent",),
        ),
        (None, ["conditions"], ("prefetch conditions was not sent",)),
    ],
)
def test_a_whole_answer_without_conditions_means_that_there_are_none(
    conditions: Any, missing: list[str], told: tuple[str, ...]
) -> None:
    """A further page, or no answer, means that nothing is known."""
    codes = CodesFeature(name="dx", grouping="icd", vocabulary=("icd10:I50",))
    schema = FeatureSchema(modalities=(Modality(name="history", features=(codes,)),))
    manifest = tiny_manifest({}).model_copy(update={"features": schema})
    service = services(manifest)[0]
    body = json.dumps(hook_call({"patient": patient(), "conditions": conditions})).encode()
    hook = _read_hook(body, service, manifest)
    assert hook.missing == missing
    assert hook.mapped.unusable == told
    assert hook.mapped.record.get("history") == (None if told else {"dx": []})


def test_another_patients_data_are_refused(client: Client) -> None:
    """The context names p1: nothing of p2 is used."""
    strangers = {key: patient(id="p2") if key == "patient" else value for key, value in whole_prefetch().items()}
    (card,) = called(client, strangers)
    assert "Patient/p2 is about another patient" in card["detail"]
    assert called(client, strangers, context={"userId": "u", "patientId": "Patient/p1"})[0]["extension"]["i2moe"]["missing"] == [
        "history"
    ]


def test_a_model_that_rejects_missing_modalities_says_412(tmp_path: Path) -> None:
    """It needs each of them; where everything was sent and one is empty there is no card."""
    with serving(write_clinical_bundle(tmp_path / "strict", missing="reject")) as strict:
        labs_alone = {"observations1": whole_prefetch()["observations1"]}
        error = assert_error(strict.request("POST", VIEW, json=hook_call(labs_alone)), 412, "DATA_MISSING")
        assert [place["loc"] for place in error["detail"]] == [["prefetch", "patient"]]
        assert called(strict, {**labs_alone, "patient": {"resourceType": "Patient", "id": PATIENT}}) == []
        assert len(called(strict, whole_prefetch())) == 1
        assert "Every modality" in strict.get("/cds-services").json()["services"][0]["usageRequirements"]


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"hook": "order-sign"}, ["hook"]),
        ({"hook": "encounter-discharge"}, ["hook"]),
        ({"hookInstance": "ZQX7731"}, ["hookInstance"]),
        ({"hookInstance": None}, ["hookInstance"]),
        ({"context": {"userId": "u"}}, ["context", "patientId"]),
        ({"context": {"userId": "u", "patientId": "ZQX 7731"}}, ["context", "patientId"]),
        ({"context": {"patientId": "p1"}}, ["context", "userId"]),
        ({"prefetch": []}, ["prefetch"]),
    ],
)
def test_a_call_that_is_none_is_refused_with_its_place(client: Client, changes: dict[str, Any], loc: list[str]) -> None:
    """In the one shape of errors, without what was sent."""
    response = client.request("POST", VIEW, json=hook_call(whole_prefetch()) | changes)
    error = assert_error(response, 422, "INVALID_INPUT")
    assert [place["loc"] for place in error["detail"]] == [loc]
    assert "ZQX" not in response.text


def test_a_discharge_needs_its_encounter(client: Client) -> None:
    """As its context is defined."""
    whole = {"userId": "u", "patientId": PATIENT, "encounterId": "e1"}
    assert len(called(client, whole_prefetch(), DISCHARGE, hook="encounter-discharge", context=whole)) == 1
    less = {"userId": "u", "patientId": PATIENT}
    response = client.request("POST", DISCHARGE, json=hook_call(None, hook="encounter-discharge", context=less))
    assert assert_error(response, 422, "INVALID_INPUT")["detail"][0]["loc"] == ["context", "encounterId"]


def test_unknown_services_are_404(client: Client) -> None:
    """For calls and for feedback."""
    assert_error(client.request("POST", "/cds-services/other", json=hook_call(None)), 404, "NOT_FOUND")
    assert_error(client.request("POST", "/cds-services/other/feedback", json={}), 404, "NOT_FOUND")
    assert_error(client.get(VIEW), 405, "METHOD_NOT_ALLOWED")


def test_unreadable_and_large_bodies_are_refused(clinical_path: Path) -> None:
    """As at /predict."""
    with serving(clinical_path, max_body_bytes=2000) as client:
        assert_error(client.request("POST", VIEW, content=b"{"), 400, "INVALID_JSON")
        assert_error(client.request("POST", VIEW, content=b" " * 3000), 413, "BODY_TOO_LARGE")
        assert_error(client.request("POST", f"{VIEW}/feedback", content=b"[]"), 400, "INVALID_JSON")


def test_a_model_that_fails_is_500(tmp_path: Path) -> None:
    """With the code that /predict has for it."""
    with serving(write_clinical_bundle(tmp_path / "poisoned", poisoned=True)) as client:
        prefetch = {"observations1": searchset(observation("2160-0", POISON, "mg/dL"))}
        assert_error(client.request("POST", VIEW, json=hook_call(prefetch)), 500, "INFERENCE_FAILED")


def test_a_model_without_codes_offers_no_service(tiny_path: Path) -> None:
    """Nothing of it could be found in FHIR."""
    with serving(tiny_path) as client:
        assert client.get("/cds-services").json() == {"services": []}
        assert_error(client.request("POST", VIEW, json=hook_call(None)), 404, "NOT_FOUND")


def feedback(**changes: Any) -> dict[str, Any]:
    """Feedback on one card."""
    told = {"card": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea", "outcome": "accepted", "outcomeTimestamp": "2026-03-01T12:00:00Z"}
    return {"feedback": [{**told, **changes}]}


def test_feedback_is_counted_with_few_labels(clinical_path: Path) -> None:
    """By outcome and by our own reasons; whatever else was given as a reason shares one label."""
    with serving(clinical_path) as client:
        reasons = [
            {"reason": {"code": "known"}},
            {"reason": {"code": "ZQX7731"}, "userComment": "ZQX7731"},
            {"userComment": "ZQX7731"},
        ]
        for sent in (feedback(), *(feedback(outcome="overridden", overrideReason=reason) for reason in reasons)):
            response = client.request("POST", f"{VIEW}/feedback", json=sent)
            assert (response.status_code, response.json()) == (200, {})
        for labels in (
            '"accepted",reason="none"',
            '"overridden",reason="known"',
            '"overridden",reason="other"',
            '"overridden",reason="none"',
        ):
            assert client.metric(f"i2moe_cds_feedback_total{{outcome={labels}}}") == 1
        assert "ZQX" not in client.get("/metrics").text


@pytest.mark.parametrize(
    ("sent", "loc"),
    [
        ({}, ["feedback"]),
        ({"feedback": []}, ["feedback"]),
        (feedback(card="x"), ["feedback", 0, "card"]),
        (feedback(outcome="ignored"), ["feedback", 0, "outcome"]),
        (feedback(outcomeTimestamp="2026-03-01T12:00:00"), ["feedback", 0, "outcomeTimestamp"]),
    ],
)
def test_feedback_that_is_none_is_refused(client: Client, sent: Any, loc: list[Any]) -> None:
    """With its place."""
    error = assert_error(client.request("POST", f"{VIEW}/feedback", json=sent), 422, "INVALID_INPUT")
    assert error["detail"][0]["loc"] == loc


def test_requests_are_counted_by_route_and_time(clinical_path: Path) -> None:
    """The same metrics as /predict has."""
    with serving(clinical_path) as client:
        called(client, whole_prefetch())
        assert client.metric('i2moe_request_duration_seconds_count{route="/cds-services/{id}",status="200"}') == 1
        assert client.metric('i2moe_samples_total{outcome="ok"}') == 1
        assert client.metric("i2moe_preprocess_seconds_count") == 1
        assert client.metric('i2moe_cds_cards_total{indicator="critical"}') == 1


ORIGIN = "https://sandbox.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "Authorization, Content-Type",
}


@pytest.fixture(scope="module")
def browsers(clinical_path: Path) -> Any:
    """A client of a service that pages of one origin may call, where people find it at an address."""
    settings = ClinicalSettings(origins=(ORIGIN,), public_url="https://risk.example")
    with serving_clinical(clinical_path, settings) as client:
        yield client


def test_pages_of_configured_origins_may_call(browsers: Client) -> None:
    """Preflight, answers and refusals all carry the header; other origins get none."""
    preflight = browsers.request("OPTIONS", VIEW, headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for response in (
        browsers.request("GET", "/cds-services", headers={"Origin": ORIGIN}),
        browsers.request("POST", VIEW, json={}, headers={"Origin": ORIGIN}),
    ):
        assert response.headers["access-control-allow-origin"] == ORIGIN
    strange = browsers.request("GET", "/cds-services", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in strange.headers
    refused = browsers.request("OPTIONS", VIEW, headers={**PREFLIGHT, "Origin": "https://evil.example"})
    assert refused.status_code == 400
    assert_error(browsers.request("OPTIONS", VIEW), 405, "METHOD_NOT_ALLOWED")


def test_without_origins_no_page_may_call(client: Client) -> None:
    """The default."""
    assert_error(client.request("OPTIONS", VIEW, headers=PREFLIGHT), 405, "METHOD_NOT_ALLOWED")
    assert "access-control-allow-origin" not in client.request("GET", "/cds-services", headers={"Origin": ORIGIN}).headers


def test_cards_link_to_the_service_where_its_address_is_known(browsers: Client, client: Client) -> None:
    """A link that leads nowhere is left out."""
    (card,) = called(browsers, whole_prefetch())
    assert card["links"] == [{"label": "About the model", "url": "https://risk.example/", "type": "absolute"}]
    assert card["source"]["url"] == "https://risk.example"
    assert "links" not in called(client, whole_prefetch())[0]


@pytest.mark.parametrize(
    ("names", "indicators"),
    [
        (("low", "moderate", "high", "very high"), ("info", "warning", "warning", "critical")),
        (("low", "high"), ("info", "warning")),
        (("any",), ("info",)),
    ],
)
def test_the_indicator_is_the_place_of_the_band(names: tuple[str, ...], indicators: tuple[Indicator, ...]) -> None:
    """Only the highest of three or more is critical."""
    bands = tuple(RiskBand(name=name, below=(i + 1) / len(names)) for i, name in enumerate(names))
    task = TaskInfo(kind="binary", labels=("no", "yes"), outcome="event", risk_bands=bands)
    assert tuple(indicator(name, task) for name in names) == indicators
    assert indicator(None, task) == "info"


NOTHING = MappedRecord({}, (), (), ())


def card_of(task: TaskInfo, prediction: dict[str, Any], mapped: MappedRecord = NOTHING) -> dict[str, Any]:
    """The card of a prediction of another kind of task."""
    manifest = tiny_manifest({}).model_copy(update={"task": task})
    card: dict[str, Any] = build_card(prediction, mapped, manifest, model={}, base_url=None)
    Cards.model_validate({"cards": [card]})
    return card


def test_a_summary_has_less_than_140_characters() -> None:
    """However long the outcome's name is; that the model is unsure still stands at its end."""
    task = TaskInfo(kind="multiclass", labels=("a", "b", "c"), outcome="diagnosis " * 40)
    unsure = {"set": ["a", "b"], "coverage": 0.9, "abstain": True, "experts_disagree": None}
    card = card_of(task, prediction_of(uncertainty=unsure))
    assert len(card["summary"]) == MAX_SUMMARY < 140
    assert card["summary"].endswith("...; the model is not sure")


def test_regression_is_told_with_its_interval() -> None:
    """The value, its interval, and experts' own values."""
    task = TaskInfo(kind="regression", labels=("days",), outcome="length of stay", training_mean=4.0)
    told = {"interval": [3.0, 9.5], "coverage": 0.9, "abstain": False, "experts_disagree": None}
    prediction = prediction_of(label="days", probability=7.25, probabilities={"days": 7.25}, uncertainty=told)
    card = card_of(task, prediction)
    assert card["summary"] == "Predicted length of stay: 7.25"
    assert "The value lies between 3 and 9.5 in 90 % of cases." in card["detail"]


def test_long_lists_are_cut_and_markdown_is_escaped() -> None:
    """A card is read in seconds, and a name cannot break its table or bring a link."""
    mapped = MappedRecord({}, (), (), tuple(f"[x](http://evil) <b>|{i}" for i in range(40)))
    task = TaskInfo(kind="multiclass", labels=("a", "b", "c"), outcome="diagnosis")
    detail = card_of(task, prediction_of(), mapped)["detail"]
    assert "- and 25 more" in detail
    assert "\\[x\\](http://evil) \\<b\\>\\|0" in detail


def test_nothing_empty_is_left_and_nothing_else_is_lost() -> None:
    """False and zero are answers."""
    assert pruned({"a": None, "b": [None, {"c": ""}], "d": False, "e": 0, "f": [{"g": []}, 0.0]}) == {
        "d": False,
        "e": 0,
        "f": [0.0],
    }
