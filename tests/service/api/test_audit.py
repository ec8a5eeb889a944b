"""Predictions that are kept: what of them, by which routes, what happens when they cannot be, and who may read them."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.access.keys import new_key
from service.api.models import KeptPredictionsResponse
from service.audit.entries import AuditEntry
from service.audit.store import PredictionStore
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving
from tests.serving import running_server
from tests.tiny_bundle import EXAMPLE_RISK, POISON, tiny_example

READER, READER_LINES = new_key("auditor", ["audit", "predict"])
WARD, WARD_LINES = new_key("ward", ["predict"])
REGISTRY, REGISTRY_LINES = new_key("registry", ["outcomes"])
AS_READER, AS_WARD, AS_REGISTRY = ({"X-API-Key": key} for key in (READER, WARD, REGISTRY))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A store and keys."""
    (tmp_path / "keys.toml").write_text(f"{READER_LINES}\n{WARD_LINES}\n{REGISTRY_LINES}")
    return {"audit_url": f"sqlite:///{tmp_path / 'kept.db'}", "api_keys": tmp_path / "keys.toml"}


@pytest.fixture
def auditing(poisoned_path: Path, settings: dict[str, Any]) -> Iterator[Client]:
    """A client of a service that keeps every prediction, without features."""
    with serving(poisoned_path, **settings) as client:
        yield client


def predict(client: Client, document: Any, request_id: str) -> Any:
    return client.post(json=document, headers={**AS_WARD, "X-Request-ID": request_id})


def kept(client: Client, request_id: str) -> list[dict[str, Any]]:
    response = client.request("GET", f"/predictions/{request_id}", headers=AS_READER)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["request_id"] == request_id
    predictions: list[dict[str, Any]] = body["predictions"]
    return predictions


def test_an_answer_is_kept_before_it_leaves(auditing: Client) -> None:
    """Risk, weights and contributions as they were told, the bundle and the time; no id, no value, no sentence."""
    answer = predict(auditing, {"instances": [tiny_example()]}, "r1").json()
    (found,) = kept(auditing, "r1")
    KeptPredictionsResponse.model_validate_json(auditing.request("GET", "/predictions/r1", headers=AS_READER).content)
    told = answer["predictions"][0]
    assert found["prediction"]["probability"] == EXAMPLE_RISK
    assert found["prediction"]["explanation"]["experts"] == told["explanation"]["experts"]
    assert found["model"] == {name: answer["model"][name] for name in ("name", "version", "sha256")}
    assert found["time"].endswith("Z")
    assert found["record"] is None
    assert not {"id", "warnings"} & found["prediction"].keys()
    assert "summary" not in found["prediction"]["explanation"]


def test_what_became_of_it_is_shown_with_it(auditing: Client) -> None:
    """As it was told, beside the prediction that it belongs to."""
    predict(auditing, {"instances": [tiny_example()] * 2}, "r1")
    told = {"request_id": "r1", "position": 1, "label": "dead", "time": "2026-03-01T13:00:00+01:00"}
    response = auditing.request("POST", "/outcomes", json={"outcomes": [told]}, headers=AS_REGISTRY)
    assert response.status_code == 200, response.text
    first, second = kept(auditing, "r1")
    assert first["outcomes"] == []
    (outcome,) = second["outcomes"]
    assert (outcome["label"], outcome["time"]) == ("dead", "2026-03-01T12:00:00Z")
    assert outcome["received"] >= second["time"]
    KeptPredictionsResponse.model_validate_json(auditing.request("GET", "/predictions/r1", headers=AS_READER).content)


@pytest.mark.parametrize("odd", ["r%00", "%F0%9F%92%A9", "r" * 129])
def test_an_id_that_no_request_has_is_not_found(auditing: Client, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking the store: PostgreSQL takes no text with a NUL."""

    def find(_: PredictionStore, request_id: str) -> list[AuditEntry]:
        raise AssertionError(f"asked for {len(request_id)} characters")

    monkeypatch.setattr(PredictionStore, "find", find)
    assert_error(auditing.request("GET", f"/predictions/{odd}", headers=AS_READER), 404, "NOT_FOUND")


def test_only_what_was_scored_is_kept_by_its_place(auditing: Client) -> None:
    """A refused instance and one on which the model failed have no prediction to explain."""
    predict(auditing, {"instances": [{"labs": {"crea": "x"}}, tiny_example(), {"labs": {"crea": POISON}}, tiny_example()]}, "r2")
    assert [found["position"] for found in kept(auditing, "r2")] == [1, 3]


def test_weights_are_kept_of_answers_that_did_not_explain(auditing: Client) -> None:
    """Whoever asks a year later wants to know, whatever the client wanted then."""
    answer = predict(auditing, {"instances": [tiny_example()], "explain": False}, "r3").json()
    assert "explanation" not in answer["predictions"][0]
    (found,) = kept(auditing, "r3")
    assert len(found["prediction"]["explanation"]["experts"]) == 4


def test_predictions_by_the_other_protocols_are_kept(auditing: Client) -> None:
    """Tensors, and a patient's FHIR resources."""
    inputs = [{"name": "labs", "shape": [2, 2], "datatype": "FP32", "data": [4.0, 140.0, 1.0, 150.0]}]
    headers = {**AS_WARD, "X-Request-ID": "r4"}
    assert auditing.request("POST", "/v2/models/tiny/infer", json={"inputs": inputs}, headers=headers).status_code == 200
    first, second = kept(auditing, "r4")
    assert (first["position"], second["position"]) == (0, 1)
    assert first["prediction"]["missing"] == ["history"]
    assert len(first["prediction"]["explanation"]["experts"]) == 4


def test_with_features_a_kept_record_is_scored_again(poisoned_path: Path, settings: dict[str, Any]) -> None:
    """What was asked, as vectors that /predict reads; and the answer's own words."""
    with serving(poisoned_path, audit_features=True, **settings) as client:
        answer = predict(client, {"instances": [{"id": "stay-9", "labs": {"crea": 20.0}}]}, "r1").json()["predictions"][0]
        (found,) = kept(client, "r1")
        assert found["record"] == {"labs": [20.0, None], "history": [None, None]}
        assert found["prediction"] == answer
        again = predict(client, {"instances": [found["record"]]}, "r2").json()["predictions"][0]
    assert again["probability"] == answer["probability"]


def break_store(path: Path) -> None:
    """The table is gone, so that nothing can be written."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE i2moe_predictions")
    connection.close()


def test_no_answer_that_is_not_kept(poisoned_path: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """Where keeping is required: 503, counted, and the service goes on."""
    with serving(poisoned_path, **settings) as client:
        break_store(tmp_path / "kept.db")
        assert_error(predict(client, {"instances": [tiny_example()]}, "r1"), 503, "NOT_KEPT")
        assert_error(client.request("GET", "/predictions/r1", headers=AS_READER), 503, "MODEL_NOT_READY")


def test_best_effort_answers_all_the_same(poisoned_path: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """And counts what was lost."""
    settings = settings | {"api_keys": None}
    with serving(poisoned_path, audit_required=False, **settings) as client:
        break_store(tmp_path / "kept.db")
        client.predict({"instances": [tiny_example()] * 3})
        for _ in range(200):
            if client.metric('i2moe_audit_total{outcome="lost"}') == 3:
                break
        assert client.metric('i2moe_audit_total{outcome="lost"}') == 3


def test_reading_needs_the_scope(auditing: Client) -> None:
    """A key that may predict may not read what others asked; an unknown id is not found."""
    predict(auditing, {"instances": [tiny_example()]}, "r1")
    assert_error(auditing.request("GET", "/predictions/r1", headers=AS_WARD), 403, "FORBIDDEN")
    assert_error(auditing.get("/predictions/r1"), 401, "UNAUTHORIZED")
    assert_error(auditing.request("GET", "/predictions/other", headers=AS_READER), 404, "NOT_FOUND")


def test_nobody_reads_without_keys(poisoned_path: Path, settings: dict[str, Any]) -> None:
    """A service that cannot tell callers apart shows nobody what it kept."""
    with serving(poisoned_path, **settings | {"api_keys": None}) as client:
        client.predict({"instances": [tiny_example()]}, headers={"X-Request-ID": "r1"})
        assert_error(client.get("/predictions/r1"), 403, "FORBIDDEN")


def test_without_a_store_nothing_is_kept(poisoned_path: Path, settings: dict[str, Any]) -> None:
    """And nothing is found."""
    with serving(poisoned_path, **settings | {"audit_url": None}) as client:
        predict(client, {"instances": [tiny_example()]}, "r1")
        assert_error(client.request("GET", "/predictions/r1", headers=AS_READER), 404, "NOT_FOUND")


@pytest.mark.slow
def test_the_real_process_keeps_what_it_answered(poisoned_path: Path, tmp_path: Path) -> None:
    """After SIGTERM everything that was answered is there; the log holds no password."""
    path = tmp_path / "kept.db"
    with running_server(poisoned_path, tmp_path / "server", environment={"I2MOE_AUDIT_URL": f"sqlite:///{path}"}) as server:
        for i in range(20):
            answer = httpx.post(f"{server.url}/predict", json=tiny_example(), headers={"X-Request-ID": f"r{i}"})
            assert answer.status_code == 200
        assert server.terminate() == 0
    store = PredictionStore(f"sqlite:///{path}", keep_days=1)
    assert all(len(store.find(f"r{i}")) == 1 for i in range(20))
    store.close()


@pytest.mark.slow
def test_a_store_that_cannot_be_opened_makes_the_service_unready(poisoned_path: Path, tmp_path: Path) -> None:
    """It says why, without the password."""
    url = "postgresql+psycopg://i2moe:geheim@127.0.0.1:1/none"
    with running_server(poisoned_path, tmp_path, ready=False, environment={"I2MOE_AUDIT_URL": url}) as server:
        ready = server.wait_until_status("/readyz", 503)
        while "still being loaded" in ready.json()["error"]:
            ready = server.get("/readyz")
        assert "could not be opened (OperationalError)" in ready.json()["error"]
        assert "geheim" not in server.log + ready.text


def test_missing_cells_are_null_in_what_is_kept() -> None:
    """JSON has no NaN."""
    from service.api.audit import _record

    assert _record({"labs": np.float32([1.5, np.nan])}) == {"labs": [1.5, None]}
