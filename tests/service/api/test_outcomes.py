"""POST /outcomes, and the figures that follow from it."""

import asyncio
import math
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json

from service.access.keys import new_key
from service.api import outcome_routes
from service.api.errors import InvalidInputError
from service.api.metrics import Metrics
from service.api.openapi import build_openapi
from service.api.outcome_routes import MAX_OUTCOMES, OutcomesResponse
from service.api.outcomes import OutcomeWatch
from service.api.settings import Settings
from service.audit.entries import AuditError, Judged
from service.audit.store import PredictionStore
from service.bundle.manifest import TaskInfo
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving
from tests.serving import Server, running_server
from tests.tiny_bundle import EXAMPLE_RISK, tiny_example

SENTINEL = "ZQX7731"
DEATH = {"request_id": "r1", "label": "dead", "time": "2026-03-01T12:00:00Z"}


@pytest.fixture
def client(tiny_path: Path, tmp_path: Path) -> Iterator[Client]:
    """A client of a service that keeps predictions and measures all the time; request r1 had two instances."""
    with serving(tiny_path, audit_url=f"sqlite:///{tmp_path / 'kept.db'}", outcomes_every_s=0.02) as client:
        client.predict({"instances": [tiny_example()] * 2}, headers={"X-Request-ID": "r1"})
        yield client


def tell(client: Client, *outcomes: Any) -> Any:
    return client.request("POST", "/outcomes", json={"outcomes": list(outcomes)})


def wait_for(client: Client | Server, series: str, value: float) -> None:
    """Until a series of /metrics is what it should be."""
    give_up = time.monotonic() + 20
    found = math.nan
    while time.monotonic() < give_up:
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
        found = float(lines[0].rpartition(" ")[2]) if lines else math.nan
        if found == pytest.approx(value, nan_ok=bool(lines)):
            return
    raise AssertionError(f"{series} is {found}")


def test_outcomes_become_figures(client: Client) -> None:
    """Two equal risks, one death: no order to judge, and half a death more or less than foretold."""
    answer = tell(client, DEATH, {"request_id": "r1", "position": 1, "label": "alive"})
    assert answer.json() == {"accepted": 2, "outcomes": [{"status": "ok"}, {"status": "ok"}]}
    OutcomesResponse.model_validate_json(answer.content)
    wait_for(client, 'i2moe_outcome_count{version="1.0.0"}', 2)
    wait_for(client, 'i2moe_outcome_auroc{version="1.0.0"}', 0.5)
    wait_for(client, 'i2moe_outcome_calibration{version="1.0.0"}', 0.5 - EXAMPLE_RISK)
    wait_for(client, 'i2moe_outcome_brier{version="1.0.0"}', (EXAMPLE_RISK**2 + (1 - EXAMPLE_RISK) ** 2) / 2)
    assert client.metric('i2moe_reference_auroc{bound="low",version="1.0.0"}') == 0.75


def test_an_outcome_is_corrected(client: Client) -> None:
    """The last one told counts."""
    tell(client, DEATH)
    tell(client, DEATH | {"label": "alive"})
    wait_for(client, 'i2moe_outcome_calibration{version="1.0.0"}', -EXAMPLE_RISK)
    wait_for(client, 'i2moe_outcome_auroc{version="1.0.0"}', math.nan)


def test_a_version_without_outcomes_has_no_figures_any_more(client: Client, tmp_path: Path) -> None:
    """Predictions are forgotten after a while, and their figures with them."""
    tell(client, DEATH)
    wait_for(client, 'i2moe_outcome_count{version="1.0.0"}', 1)
    with sqlite3.connect(tmp_path / "kept.db") as connection:
        connection.execute("DELETE FROM i2moe_predictions")
    connection.close()
    wait_for(client, 'i2moe_outcome_count{version="1.0.0"}', 0)
    wait_for(client, 'i2moe_outcome_brier{version="1.0.0"}', math.nan)


BAD: dict[str, tuple[Any, list[str], str]] = {
    "nobody's request": (DEATH | {"request_id": "r9"}, ["request_id"], "unknown_prediction"),
    "no such position": (DEATH | {"position": 2}, ["request_id"], "unknown_prediction"),
    "another label": (DEATH | {"label": SENTINEL}, ["label"], "unknown_label"),
    "a label that is a number": (DEATH | {"label": 1}, ["label"], "string_type"),
    "a position in words": (DEATH | {"position": "0"}, ["position"], "int_type"),
    "a position below nought": (DEATH | {"position": -1}, ["position"], "greater_than_equal"),
    "a position beyond integers of a database": (DEATH | {"position": 2**63}, ["position"], "less_than"),
    "a time without a zone": (DEATH | {"time": "2026-03-01T12:00:00"}, ["time"], "timezone_aware"),
    "a time before there were records": (DEATH | {"time": "0001-01-01T00:00:00+14:00"}, ["time"], "greater_than_equal"),
    "an id that no request has": (DEATH | {"request_id": "r1\0"}, ["request_id"], "string_pattern_mismatch"),
    "an id without an end": (DEATH | {"request_id": "r" * 129}, ["request_id"], "string_pattern_mismatch"),
    "a time that is none": (DEATH | {"time": SENTINEL}, ["time"], "datetime_from_date_parsing"),
    "no label": ({"request_id": "r1"}, ["label"], "missing"),
    "an unknown key": (DEATH | {"patient": SENTINEL}, ["patient"], "extra_forbidden"),
    "no object": (SENTINEL, [], "model_type"),
}


@pytest.mark.parametrize(("item", "loc", "type_"), BAD.values(), ids=BAD)
def test_a_bad_outcome_is_told_in_its_place_beside_good_ones(client: Client, item: Any, loc: list[str], type_: str) -> None:
    """And refuses the request only where it is alone. No value is repeated."""
    beside, alone = tell(client, DEATH, item), tell(client, item)
    good, bad = beside.json()["outcomes"]
    assert (beside.json()["accepted"], good, bad["status"]) == (1, {"status": "ok"}, "error")
    for told, position in ((bad["error"], 1), (assert_error(alone, 422, "INVALID_INPUT"), 0)):
        (place,) = told["detail"]
        assert (place["loc"], place["type"]) == (["outcomes", position, *loc], type_)
    assert SENTINEL not in beside.text + alone.text


@pytest.mark.parametrize(
    "body", [{}, {"outcomes": []}, {"outcomes": [DEATH] * (MAX_OUTCOMES + 1)}, {"outcomes": [DEATH], "x": 1}]
)
def test_a_bad_envelope_is_refused_whole(client: Client, body: Any) -> None:
    """Nothing of it is kept."""
    assert_error(client.request("POST", "/outcomes", json=body), 422, "INVALID_INPUT")
    assert_error(client.request("POST", "/outcomes", content=b"{"), 400, "INVALID_JSON")


def test_a_body_that_is_no_json_is_refused_by_its_type(client: Client) -> None:
    """As /predict does."""
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.request("POST", "/outcomes", content=b"x", headers=headers)
    assert_error(response, 415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_store_that_hangs_does_not_hold_its_callers(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """504 at the deadline, as of every request."""
    over = threading.Event()
    monkeypatch.setattr(PredictionStore, "add_outcomes", lambda *_, **__: over.wait(20) and [])
    with serving(tiny_path, audit_url=f"sqlite:///{tmp_path / 'kept.db'}", timeout_s=0.05) as client:
        assert_error(tell(client, DEATH), 504, "TIMEOUT")
        over.set()


def test_figures_are_of_the_time_that_the_settings_say(tiny_path: Path, tmp_path: Path) -> None:
    """A prediction younger than the time it foretells does not count: of its like only early deaths are known.

    Nor does one that is older than what is measured.
    """
    settings: dict[str, Any] = {"audit_url": f"sqlite:///{tmp_path / 'kept.db'}", "audit_keep_days": 1000}
    with serving(tiny_path, **settings, outcomes_every_s=0.02, outcomes_delay_days=365, outcomes_days=90) as client:
        for request_id in ("r1", "r2", "r3"):
            client.predict(tiny_example(), headers={"X-Request-ID": request_id})
        tell(client, DEATH | {"label": "alive"}, DEATH | {"request_id": "r2"}, DEATH | {"request_id": "r3", "label": "alive"})
        with sqlite3.connect(tmp_path / "kept.db") as connection:
            ages = "CASE request_id WHEN 'r1' THEN 364 WHEN 'r2' THEN 366 ELSE 456 END"
            connection.execute(f"UPDATE i2moe_predictions SET time_us = time_us - 86400000000 * {ages}")
        connection.close()
        wait_for(client, 'i2moe_outcome_count{version="1.0.0"}', 1)
        wait_for(client, 'i2moe_outcome_calibration{version="1.0.0"}', 1 - EXAMPLE_RISK)


def test_outcomes_need_predictions_that_are_kept(tiny_path: Path) -> None:
    """Elsewhere there is nothing that they could belong to."""
    with serving(tiny_path) as client:
        assert "I2MOE_AUDIT_URL" in assert_error(tell(client, DEATH), 404, "NOT_FOUND")["error"]


@pytest.mark.parametrize(
    ("kind", "labels", "more"), [("multilabel", ("a", "b"), {}), ("regression", ("days",), {"training_mean": 3.0})]
)
def test_outcomes_of_other_tasks_are_refused_whole(kind: str, labels: tuple[str, ...], more: dict[str, float]) -> None:
    """Their truth is no one label, so there is nothing that a probability could be judged by."""
    task = TaskInfo.model_validate({"kind": kind, "labels": labels, "outcome": "an outcome", **more})
    with pytest.raises(InvalidInputError, match=f"binary and multiclass tasks, found a {kind} task") as refused:
        outcome_routes._read(to_json({"outcomes": [DEATH]}), task)
    assert [problem.type for problem in refused.value.detail] == ["task_kind"]


def test_outcomes_that_cannot_be_kept_are_told_so(client: Client, tmp_path: Path) -> None:
    """503, and try again; measuring goes on when the store is back."""
    with sqlite3.connect(tmp_path / "kept.db") as connection:
        connection.execute("ALTER TABLE i2moe_outcomes RENAME TO gone")
    assert_error(tell(client, DEATH), 503, "NOT_KEPT")
    with connection:
        connection.execute("ALTER TABLE gone RENAME TO i2moe_outcomes")
    connection.close()
    tell(client, DEATH)
    wait_for(client, 'i2moe_outcome_count{version="1.0.0"}', 1)


def test_telling_outcomes_needs_its_own_scope(tiny_path: Path, tmp_path: Path) -> None:
    """A registry may tell what became of predictions without reading any."""
    registry, registry_lines = new_key("registry", ["outcomes"])
    ward, ward_lines = new_key("ward", ["predict", "audit"])
    (tmp_path / "keys.toml").write_text(f"{registry_lines}\n{ward_lines}")
    settings: dict[str, Any] = {"audit_url": f"sqlite:///{tmp_path / 'kept.db'}", "api_keys": tmp_path / "keys.toml"}
    with serving(tiny_path, **settings) as client:
        body = {"json": {"outcomes": [DEATH]}}
        assert_error(client.request("POST", "/outcomes", headers={"X-API-Key": ward}, **body), 403, "FORBIDDEN")
        assert_error(client.request("POST", "/outcomes", **body), 401, "UNAUTHORIZED")
        told = client.request("POST", "/outcomes", headers={"X-API-Key": registry}, **body)
        assert_error(told, 422, "INVALID_INPUT")
        assert_error(client.request("GET", "/predictions/r1", headers={"X-API-Key": registry}), 403, "FORBIDDEN")


def test_the_document_shows_how_outcomes_are_told() -> None:
    """Each item has a schema."""
    document = build_openapi(None)
    assert "post" in document["paths"]["/outcomes"]
    assert document["components"]["schemas"]["OutcomesRequest"]["properties"]["outcomes"]["items"] == {
        "$ref": "#/components/schemas/OutcomeItem"
    }


class OddStore:
    """Fails in a way nobody foresaw, then tells of twelve versions: version v has v outcomes."""

    def __init__(self) -> None:
        self.asked = 0

    def judged(self, since: datetime, until: datetime) -> list[Judged]:
        self.asked += 1
        if self.asked == 1:
            raise ZeroDivisionError(SENTINEL)
        if self.asked == 2:
            raise AuditError("the store is busy")
        other = [Judged("another", "99", 0.5, True)] * 99
        return other + [Judged("tiny", str(v), 0.5, True) for v in range(1, 13) for _ in range(v)]


def test_measuring_goes_on_and_tells_few_versions(caplog: pytest.LogCaptureFixture) -> None:
    """An odd failure is logged by its places and tried again; of many versions those with the most outcomes have series."""
    store, metrics = OddStore(), Metrics()

    async def scenario() -> None:
        settings = Settings(outcomes_every_s=0.01)
        watch = OutcomeWatch(store, settings, metrics, model_name="tiny")  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            while store.asked < 4:
                await asyncio.sleep(0.01)
        await watch.close()

    asyncio.run(scenario())
    told = re.findall(r'i2moe_outcome_count\{version="(\d+)"\} (\d+)', metrics.render().decode())
    assert sorted(map(int, dict(told))) == list(range(3, 13))
    assert all(version == count for version, count in told)
    assert "outcomes were not measured: ZeroDivisionError" in caplog.text
    assert f"ZeroDivisionError: {SENTINEL}" not in caplog.text
    assert "WARNING  i2moe.outcomes:outcomes.py" in caplog.text
    assert "outcomes were not measured: the store is busy" in caplog.text


@pytest.mark.slow
def test_two_workers_tell_the_same_figures(tiny_path: Path, tmp_path: Path) -> None:
    """They share a store, and a scrape has one series for both."""
    environment = {
        "I2MOE_WORKERS": "2",
        "I2MOE_AUDIT_URL": f"sqlite:///{tmp_path / 'kept.db'}",
        "I2MOE_OUTCOMES_EVERY_S": "0.1",
    }
    with running_server(tiny_path, tmp_path / "server", environment=environment) as server:
        answer = server.post("/predict", {"instances": [tiny_example()] * 3})
        told = [{"request_id": answer.json()["request_id"], "position": i, "label": "dead"} for i in range(3)]
        answer = server.post("/outcomes", {"outcomes": told})
        while answer.status_code == 503:  # of the other worker, whose model is still being loaded
            answer = server.post("/outcomes", {"outcomes": told})
        assert answer.json()["accepted"] == 3
        wait_for(server, 'i2moe_outcome_count{version="1.0.0"}', 3)
        wait_for(server, 'i2moe_outcome_calibration{version="1.0.0"}', 1 - EXAMPLE_RISK)
        assert server.get("/metrics").text.count("i2moe_outcome_count{") == 1
