"""A patient's value goes through every route of a real process that logs all it can, and is then looked for everywhere."""

import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.keys import SCOPES, new_key
from service.api.app import build_app
from service.api.runtime import Runtime
from service.api.settings import Settings
from tests.service.access.issuer import AUDIENCE, ISSUER, jwks_file, private_key, token
from tests.service.api.otlp_collector import Collector, running_collector
from tests.service.clinical.clinical_bundle import (
    hook_call,
    observation,
    patient,
    searchset,
    whole_prefetch,
    write_clinical_bundle,
)
from tests.service.clinical.test_hooks import feedback
from tests.serving import Server, running_server
from tests.shadow_bundles import write_unnamed_bundle
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.slow
WORD, NUMBER = "ZQX7731", 7.7319731  # stand for a patient's words and numbers
NAME = "ZQN4410"  # stands for a misplaced word where a name belongs: refusals say which name they do not know
TRACES = (WORD, "7.7319", "9007.7")
VIEW, EVALUATE, INFER = "/cds-services/tiny-patient-view", "/fhir/RiskAssessment/$evaluate", "/v2/models/tiny/infer"
KEY, KEY_LINES = new_key("everything", list(SCOPES))
GOOD = {"id": WORD, "labs": {"crea": NUMBER, "sod": 9000 + NUMBER}, "history": {"sex": WORD}}
POISONED = {"labs": {"crea": POISON, "sod": NUMBER}}


@dataclass
class Caller:
    """Sends to one service, and remembers which paths it called and what it was refused with."""

    server: Server
    kept: Path
    log_format: str
    collector: Collector
    routes: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def send(self, method: str, path: str, route: str | None = None, **options: Any) -> httpx.Response:
        """One request with a key; `route` is the path's pattern where it has one."""
        headers = {"X-API-Key": KEY, "tracestate": f"vendor={WORD}", "baggage": f"id={WORD}", **options.pop("headers", {})}
        response = httpx.request(method, self.server.url + path, headers=headers, timeout=10, **options)
        self.routes.add(route or path)
        if response.status_code >= 400:
            self.refusals.append(response.text + str(response.headers))
        return response

    def get(self, path: str, route: str | None = None) -> httpx.Response:
        return self.send("GET", path, route)

    def post(self, path: str, document: object, route: str | None = None, **options: Any) -> httpx.Response:
        return self.send("POST", path, route, json=document, **options)


@pytest.fixture(scope="module", params=["text", "json"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A service that logs, keeps and measures all it can."""
    folder = tmp_path_factory.mktemp("leaks")
    bundle = write_clinical_bundle(folder / "bundle", poisoned=True)
    (folder / "keys.toml").write_text(KEY_LINES)
    environment = {
        "I2MOE_LOG_LEVEL": "DEBUG",
        "I2MOE_LOG_FORMAT": request.param,
        "I2MOE_ACCESS_LOG": "1",
        "BENTOML_DEBUG": "true",
        "I2MOE_API_KEYS": str(folder / "keys.toml"),
        "I2MOE_OIDC_ISSUERS": json.dumps({ISSUER: str(jwks_file(folder, "RS256", "ES256"))}),
        "I2MOE_OIDC_AUDIENCE": AUDIENCE,
        "I2MOE_OUTCOMES_EVERY_S": "0.2",
        "I2MOE_SHADOW_BUNDLE": str(write_unnamed_bundle(folder / "shadow", fails_on=NUMBER)),
        "I2MOE_AUDIT_URL": f"sqlite:///{folder / 'kept.db'}",
    }
    with (
        running_collector() as collector,
        running_server(
            bundle, folder / "server", environment=environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        ) as server,
    ):
        caller = Caller(server, folder / "kept.db", request.param, collector)
        wait_for_shadow(caller)
        send_everything(caller)
        yield caller


def wait_for_shadow(caller: Caller) -> None:
    """Until it is compared; it fails on what is a good patient's value to the served model."""
    for _ in range(600):
        if caller.get("/model").json()["shadow"]["model"] is not None:
            return
        time.sleep(0.05)
    raise AssertionError(caller.server.log)


def send_everything(caller: Caller) -> None:
    """Good, odd and bad requests to every route."""
    send_tokens(caller)
    send_predictions(caller)
    send_tensors(caller)
    send_resources(caller)
    send_outcomes(caller)
    read_everything(caller)


def send_tokens(caller: Caller) -> None:
    """Of a person, good and refused at every step of a check."""
    changes: list[tuple[int, dict[str, Any]]] = [
        (200, {}),
        (403, {"scope": WORD}),
        (401, {"aud": WORD}),
        (401, {"iss": WORD}),
        (401, {"exp": WORD}),
        (401, {"nonce": WORD, "header": {"typ": WORD}}),
        (401, {"header": {"kid": WORD}}),
        (401, {"header": {"jku": f"https://{WORD}.example"}}),
        (401, {"header": {"kid": "ES256"}}),
        (401, {"key": private_key("RS256-unknown")}),
    ]
    for status, changed in changes:
        caller.tokens.append(token(**{"sub": WORD, "name": "RS256"} | changed))
        headers = {"X-API-Key": WORD, "Authorization": f"Bearer {caller.tokens[-1]}"}
        assert caller.post("/predict", GOOD, headers=headers).status_code == status, changed


def send_predictions(caller: Caller) -> None:
    assert caller.post("/predict", GOOD).status_code == 200
    fhir = {"Accept": "application/fhir+json"}
    assert caller.post("/predict", GOOD, headers=fhir).status_code == 200
    assert caller.post("/predict", {"instances": [GOOD, POISONED, {"labs": {NAME: NUMBER}}]}).status_code == 200
    bodies = [
        f'{{"labs": {{"crea": "{WORD}", "sod": "{NUMBER}"}}}}',
        f'{{"instances": [{{"id": {{"{NUMBER}": 1}}, "labs": [{NUMBER}]}}]}}',
        f'{{"labs": {{"crea": {NUMBER}, {WORD}}}}}',
        f'{{"instances": "{WORD}", "explain": {NUMBER}}}',
        json.dumps(POISONED),
        f"{WORD} {NUMBER}",
    ]
    for body in bodies:
        for headers in ({"X-Request-ID": f"{WORD}/{NUMBER}"}, fhir, {"Content-Encoding": WORD}, {"X-API-Key": WORD}):
            assert caller.send("POST", "/predict", content=body, headers=headers).status_code >= 400


def send_tensors(caller: Caller) -> None:
    route, versioned = "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"

    def inputs(data: list[Any], **changes: Any) -> dict[str, Any]:
        return {"inputs": [{"name": "labs", "shape": [1, 2], "datatype": "FP32", "data": data, **changes}]}

    assert caller.post(INFER, inputs([NUMBER, 9000 + NUMBER]), route).status_code == 200
    assert caller.post("/v2/models/tiny/versions/1.0.0/infer", inputs([NUMBER, 1]), versioned).status_code == 200
    for bad in (inputs([WORD, 1]), inputs([NUMBER]), inputs([NUMBER, 1], name=WORD), inputs([POISON, NUMBER]), {NAME: NUMBER}):
        assert caller.post(INFER, bad, route).status_code >= 400
    assert caller.post(f"/v2/models/{WORD}/infer", inputs([1, 1]), route).status_code == 404


def send_resources(caller: Caller) -> None:
    call, answer = "/cds-services/{id}", "/cds-services/{id}/feedback"
    note = base64.b64encode(WORD.encode()).decode()
    odd: list[dict[str, Any]] = [
        observation("2160-0", NUMBER, "mg/dL"),
        observation("2951-2", NUMBER, WORD),
        observation("46098-0", {"valueString": WORD}),
        patient(gender=WORD, birthDate=WORD, name=[{"family": WORD}]),
        {"resourceType": "DocumentReference", "content": [{"attachment": {"contentType": "text/plain", "data": note}}]},
    ]
    assert caller.get("/cds-services").status_code == 200
    assert caller.post(VIEW, hook_call({"observations1": searchset(*odd)}), call).status_code == 200
    assert caller.post(VIEW, hook_call(whole_prefetch()), call).status_code == 200
    assert caller.post(EVALUATE, searchset(patient(), *odd[:3])).status_code == 200
    accepted = feedback(overrideReason={"reason": {"code": WORD}, "userComment": WORD}, outcome="overridden")
    assert caller.post(f"{VIEW}/feedback", accepted, answer).status_code == 200
    for path, body, route in (
        (VIEW, hook_call([WORD]), call),  # type: ignore[arg-type]
        (VIEW, hook_call(None, hook=WORD, fhirAuthorization={"access_token": WORD}), call),
        (VIEW, {NAME: NUMBER}, call),
        (f"{VIEW}/feedback", feedback(card=WORD, outcome=WORD), answer),
        (f"/cds-services/{WORD}", hook_call(None), call),
        (EVALUATE, {"resourceType": WORD}, None),
        (EVALUATE, searchset(patient(id=WORD), patient(id=str(NUMBER))), None),
    ):
        assert caller.post(path, body, route).status_code >= 400


def send_outcomes(caller: Caller) -> None:
    request_id = caller.post("/predict", GOOD).json()["request_id"]
    good = {"request_id": request_id, "label": "dead"}
    bad = [
        good | {"label": WORD},
        good | {"request_id": WORD, "position": 7},
        good | {"time": WORD},
        good | {NAME: NUMBER},
        {"request_id": NUMBER, "label": NUMBER},
        WORD,
        NUMBER,
    ]
    for told, status in (([good, *bad], 200), (bad, 422), (WORD, 422), ({NAME: WORD}, 422)):
        response = caller.post("/outcomes", {"outcomes": told})
        assert response.status_code == status
        assert WORD not in response.text
    assert caller.send("POST", "/outcomes", content=f"{WORD} {NUMBER}").status_code == 400
    assert caller.get(f"/predictions/{request_id}", "/predictions/{request_id}").status_code == 200


def read_everything(caller: Caller) -> None:
    for path in ("/", "/model", "/model-card", "/explanations", "/docs.json", "/v2", "/metrics", "/livez", "/readyz"):
        assert caller.get(path).status_code == 200
        caller.get(f"{path}?patient={WORD}&value={NUMBER}")
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert caller.get(path).status_code == 200
    for path, route in (
        ("/static/page.js", "/static/{name}"),
        ("/v2/models/tiny", "/v2/models/{name}"),
        ("/v2/models/tiny/ready", "/v2/models/{name}/ready"),
        ("/v2/models/tiny/versions/1.0.0", "/v2/models/{name}/versions/{version}"),
        ("/v2/models/tiny/versions/1.0.0/ready", "/v2/models/{name}/versions/{version}/ready"),
    ):
        assert caller.get(path, route).status_code == 200
    assert caller.post("/admin/reload", {"patient": WORD, "value": NUMBER}).status_code == 200
    caller.get(f"/static/{WORD}", "/static/{name}")
    caller.get(f"/predictions/{WORD}", "/predictions/{request_id}")
    for path in (f"/patients/{WORD}", f"/predict?patient={WORD}", f"/v2/models/{WORD}", f"/cds-services/{WORD}/{NUMBER}"):
        assert caller.get(path, "other").status_code >= 400


def test_every_route_was_called(caller: Caller) -> None:
    """A route that is added later must be added here."""
    routes = {route.path for route in build_app(lambda: Runtime(Settings())).routes}  # type: ignore[attr-defined]
    assert routes <= caller.routes


def test_no_value_is_in_the_log(caller: Caller) -> None:
    """Whatever was sent, whatever came of it."""
    assert "inference failed for 1 samples together" in caller.server.log  # it does log what goes wrong
    assert [line for line in caller.server.log.splitlines() if any(trace in line for trace in (*TRACES, NAME))] == []


def test_no_part_of_a_token_is_told(caller: Caller) -> None:
    """In logs, metrics, refusals or traces: whoever reads those could call the service."""
    parts = {part for text in caller.tokens for part in text.split(".")}
    assert len(parts) > 15
    told = [caller.server.log, caller.get("/metrics").text, *caller.refusals, *map(repr, caller.collector.bodies)]
    assert [part for part in parts if any(part in text for text in told)] == []


def test_the_shadow_failed_and_could_not_read(caller: Caller) -> None:
    """What it failed on, and what it did not understand, is among what is looked for."""
    assert "the shadow failed" in caller.server.log
    text = caller.get("/metrics").text
    outcomes = dict(re.findall(r'i2moe_shadow_samples_total\{outcome="(\w+)"\} (\S+)', text))
    assert all(float(outcomes[outcome]) > 0 for outcome in ("compared", "invalid", "error")), outcomes


def test_no_value_is_in_metrics_or_refusals(caller: Caller) -> None:
    """Refusals name places and kinds; labels come from fixed sets."""
    assert len(caller.refusals) > 30
    metrics = caller.get("/metrics").text
    assert NAME not in metrics
    told = [*caller.refusals, metrics]
    assert [text for text in told if any(trace in text for trace in TRACES)] == []


def test_no_value_is_in_traces(caller: Caller) -> None:
    """Spans hold routes, statuses and counts; what a caller says about its trace beside traceparent is not passed on."""
    for name in ("read", "inference", "audit", "POST /outcomes", "POST /cds-services/{id}", "POST /v2/infer", "GET"):
        caller.collector.wait_for(name)
    assert [body for body in caller.collector.bodies if any(trace.encode() in body for trace in (*TRACES, NAME))] == []


def test_no_value_is_kept_unasked(caller: Caller) -> None:
    """Without I2MOE_AUDIT_FEATURES the store's files, unfinished transactions included, hold none."""
    files = list(caller.kept.parent.glob("kept.db*"))
    assert any(b"i2moe_predictions" in path.read_bytes() for path in files)
    assert [(path, trace) for path in files for trace in (*TRACES, NAME) if trace.encode() in path.read_bytes()] == []


def test_every_line_is_json_where_that_is_chosen(caller: Caller) -> None:
    """Those of BentoML and of the process that starts the workers, too; access lines have their parts as numbers."""
    if caller.log_format == "text":
        assert "i2moe.access: POST /predict 200" in caller.server.log
        return
    lines = [json.loads(line) for line in caller.server.log.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert {"bentoml.serve", "i2moe.access", "i2moe.runtime"} <= {line["logger"] for line in lines}
    access = [line for line in lines if line["logger"] == "i2moe.access"]
    assert all(line.keys() >= {"request_id", "method", "route", "status", "ms"} for line in access)
    assert {line["status"] for line in access} >= {200, 400, 401, 404, 415, 422, 500}
