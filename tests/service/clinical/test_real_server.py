"""Against a real `bentoml serve` process: discovery, a call, feedback; a browser; tokens; a client that others wrote."""

import base64
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.api.error_shape import assert_error
from tests.service.clinical.clinical_bundle import PATIENT, hook_call, observation, patient, searchset, whole_prefetch
from tests.service.clinical.fhir_check import assert_fhir
from tests.service.clinical.test_hooks import feedback
from tests.service.clinical.test_tokens import BASE, ISSUER, jwks, token
from tests.serving import Server, running_server
from tests.tiny_bundle import EXAMPLE_RISK, tiny_example

pytestmark = pytest.mark.slow
VIEW = "/cds-services/tiny-patient-view"
SENTINEL, SENTINEL_NUMBER = "ZQX7731", 7.7319731
ORIGIN = "https://sandbox.example"


@pytest.fixture(scope="module")
def server(clinical_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that logs all it can, for pages of one origin."""
    environment = {"I2MOE_LOG_LEVEL": "DEBUG", "I2MOE_ACCESS_LOG": "1", "BENTOML_DEBUG": "true", "I2MOE_CDS_ORIGINS": ORIGIN}
    with running_server(clinical_path, tmp_path_factory.mktemp("server"), environment=environment) as server:
        yield server


def test_discovery_leads_to_a_card_and_the_card_to_feedback(server: Server) -> None:
    """The whole way of an EHR: find the service, send what it asks for, show the card, say what came of it."""
    (view, _) = server.get("/cds-services").json()["services"]
    sent = whole_prefetch()
    assert set(view["prefetch"]) == set(sent)
    (card,) = server.post(f"/cds-services/{view['id']}", hook_call(sent)).json()["cards"]
    assert card["extension"]["i2moe"]["probability"] == pytest.approx(EXAMPLE_RISK, abs=1e-4)
    assert server.post(f"/cds-services/{view['id']}/feedback", feedback(card=card["uuid"])).status_code == 200
    metrics = server.get("/metrics").text
    assert 'i2moe_cds_feedback_total{outcome="accepted",reason="none"} 1.0' in metrics
    assert 'i2moe_cds_cards_total{indicator="critical"} 1.0' in metrics
    assert "I2MOE_CDS_ISSUERS is not set" in server.log


def test_fhir_is_answered_where_it_is_accepted(server: Server) -> None:
    """Through BentoML's process: an answer and a refusal."""
    headers = {"Accept": "application/fhir+json"}
    answer = httpx.post(f"{server.url}/predict", json=tiny_example(), headers=headers)
    assert_fhir(answer.json())
    assert answer.json()["prediction"][0]["probabilityDecimal"] == pytest.approx(100 * EXAMPLE_RISK, abs=1e-4)
    assert_fhir(httpx.post(f"{server.url}/predict", json={}, headers=headers).json())
    assert_fhir(server.post("/fhir/RiskAssessment/$evaluate", searchset(patient())).json())
    assert_fhir(server.post("/fhir/RiskAssessment/%24evaluate", searchset(patient())).json())


def test_a_page_in_a_browser_is_served(server: Server) -> None:
    """Preflight and call, with BentoML around us; unknown paths under ours keep the error's shape."""
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answer = httpx.options(server.url + VIEW, headers=preflight)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    called = httpx.post(server.url + VIEW, json=hook_call(whole_prefetch()), headers={"Origin": ORIGIN})
    assert called.headers["access-control-allow-origin"] == ORIGIN
    assert_error(server.get("/cds-services/a/b/c"), 404, "NOT_FOUND")


def test_no_patient_value_reaches_log_metrics_or_error(server: Server) -> None:
    """Good, bad and odd resources, ids and comments: at DEBUG level nothing repeats them."""
    note = base64.b64encode(SENTINEL.encode()).decode()
    odd: list[dict[str, Any]] = [
        observation("2160-0", SENTINEL_NUMBER, "mg/dL"),
        observation("2951-2", SENTINEL_NUMBER, SENTINEL),
        observation("46098-0", {"valueString": SENTINEL}),
        patient(gender=SENTINEL, birthDate=SENTINEL, name=[{"family": SENTINEL}]),
        {"resourceType": "DocumentReference", "content": [{"attachment": {"contentType": "text/plain", "data": note}}]},
    ]
    assert server.post(VIEW, hook_call({"observations1": searchset(*odd)})).status_code == 200
    refused = [
        (
            VIEW,
            hook_call(None, fhirAuthorization={"access_token": SENTINEL})
            | {"context": {"userId": SENTINEL, "patientId": PATIENT}},
        ),
        (VIEW, hook_call([SENTINEL])),  # type: ignore[arg-type]
        (VIEW, hook_call(None, hook=SENTINEL, hookInstance=SENTINEL)),
        (VIEW, {SENTINEL: SENTINEL}),
        (f"{VIEW}/feedback", feedback(card=SENTINEL, outcome=SENTINEL)),
        (f"/cds-services/{SENTINEL}", hook_call(None)),
        ("/fhir/RiskAssessment/$evaluate", {"resourceType": SENTINEL}),
    ]
    for path, body in refused:
        response = server.post(path, body)
        assert response.status_code >= 400
        assert SENTINEL not in response.text
    sent = feedback(overrideReason={"reason": {"code": SENTINEL}, "userComment": SENTINEL}, outcome="overridden")
    assert server.post(f"{VIEW}/feedback", sent).status_code == 200
    for place in (server.log, server.get("/metrics").text):
        assert SENTINEL not in place
        assert "7.7319" not in place


def test_a_service_with_issuers_lets_their_tokens_in_alone(clinical_path: Path, tmp_path: Path) -> None:
    """From the environment to the answer."""
    keys = tmp_path / "ehr.json"
    keys.write_text(json.dumps(jwks()))
    environment = {"I2MOE_CDS_ISSUERS": json.dumps({ISSUER: str(keys)}), "I2MOE_CDS_PUBLIC_URL": BASE}
    with running_server(clinical_path, tmp_path / "work", environment=environment) as server:
        assert_error(server.get("/cds-services"), 401, "UNAUTHORIZED")
        once = token()
        sent: dict[str, Any] = {"json": hook_call(whole_prefetch()), "headers": {"Authorization": f"Bearer {once}"}}
        assert httpx.post(server.url + VIEW, **sent).status_code == 200
        assert_error(httpx.post(server.url + VIEW, **sent), 401, "UNAUTHORIZED")
        assert once not in server.log


def test_a_service_whose_lock_is_broken_does_not_open(clinical_path: Path, tmp_path: Path) -> None:
    """Issuers whose keys are nowhere: never ready, with the reason."""
    environment = {"I2MOE_CDS_ISSUERS": '{"https://ehr.example": "/nowhere.json"}', "I2MOE_CDS_PUBLIC_URL": BASE}
    with running_server(clinical_path, tmp_path, ready=False, environment=environment) as server:
        refusal = assert_error(server.wait_until_status("/readyz", 503), 503, "MODEL_NOT_READY")
        assert "I2MOE_CDS_ISSUERS" in server.log or "I2MOE_CDS_ISSUERS" in refusal["error"]
        assert_error(server.get("/cds-services"), 503, "MODEL_NOT_READY")


@pytest.fixture
def healthchain_python() -> str:
    """A Python that has healthchain, which needs other versions than this project pins."""
    if found := os.environ.get("HEALTHCHAIN_PYTHON"):
        return found
    if importlib.util.find_spec("healthchain") is None:
        pytest.skip(
            "healthchain is not installed: set HEALTHCHAIN_PYTHON to a Python that has it (pip install healthchain[sandbox])"
        )
    return sys.executable


def test_healthchains_sandbox_is_a_client(server: Server, healthchain_python: str, tmp_path: Path) -> None:
    """A client of CDS Hooks that others wrote takes our cards as what they are, of our patient and of three that it makes up."""
    prefetch, told = tmp_path / "prefetch.json", tmp_path / "answers.json"
    prefetch.write_text(json.dumps(whole_prefetch()))
    script = Path(__file__).with_name("healthchain_client.py")
    command = [healthchain_python, str(script), server.url + VIEW, str(prefetch), PATIENT, str(told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(told.read_text())
    ((card,),) = (answer["cards"] for answer in answers["own"])
    assert card["summary"].startswith("Risk of death within one year: 51 %")
    assert card["indicator"] == "critical"
    assert [len(answer["cards"]) for answer in answers["synthetic"]] == [1, 1, 1]
