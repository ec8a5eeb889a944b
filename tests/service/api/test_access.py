"""Keys at the door: who is let in where, who is sent away and how, and that nothing is read of those."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match

from service.access.keys import new_key
from service.api.access import GuardedRoute
from service.api.app import all_routes
from service.api.runtime import Runtime
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving, serving_runtime
from tests.serving import running_server
from tests.tiny_bundle import tiny_example

NEEDS = {
    "/predict": "predict",
    "/v2/models/tiny/infer": "predict",
    "/v2/models/tiny/versions/1/infer": "predict",
    "/v2/models/tiny": "explain",
    "/v2/models/tiny/ready": "explain",
    "/model": "explain",
    "/model-card": "explain",
    "/explanations": "explain",
    "/metrics": "metrics",
    "/": None,
    "/docs.json": None,
    "/static/page.js": None,
    "/v2": None,
    "/v2/health/live": None,
    "/v2/health/ready": None,
    "/nothing": None,
    "/v2nothing": None,
    "/predictionsnothing": None,
    "/cds-servicesnothing": None,
    "/predictions/r1": "audit",
    "/admin/reload": "admin",
    "/outcomes": "outcomes",
    "/cds-services": "predict",
    "/cds-services/tiny-patient-view": "predict",
    "/cds-services/tiny-patient-view/feedback": "predict",
    "/fhir/RiskAssessment/$evaluate": "predict",
}


@pytest.fixture(scope="module")
def tokens() -> dict[str, tuple[str, str]]:
    """A key and its lines by scope; one with a rate."""
    made = {scope: new_key(scope, [scope]) for scope in ("predict", "explain", "metrics")}  # type: ignore[list-item]
    return made | {"slow": new_key("slow", ["predict"], 0.001)}


@pytest.fixture(scope="module")
def guarded(tiny_path: Path, tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service with keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text("\n".join(lines for _, lines in tokens.values()) + "burst = 2\n")
    with serving(tiny_path, api_keys=path) as client:
        yield client


def matched(path: str) -> GuardedRoute | None:
    """The route that a path leads to."""
    scope = {"type": "http", "method": "GET", "path": path}
    return next((route for route in all_routes() if route.matches(scope)[0] is not Match.NONE), None)


@pytest.mark.parametrize(("path", "scope"), NEEDS.items())
def test_a_path_needs_its_scope(path: str, scope: str | None) -> None:
    """Probes and what tells of nobody are open; clinical routes check tokens of their own where they are told whose."""
    route = matched(path)
    assert (route and route.needs) == scope
    assert (route is not None and route.has_own_tokens) == path.startswith(("/cds-services/", "/fhir")) or path == "/cds-services"


def test_every_route_is_open_or_needs_a_scope(guarded: Client) -> None:
    """A new route must be thought about: it says what it needs, and stands in this test's table."""
    known = {path.rpartition("/tiny")[0] or path for path in NEEDS} | {"/predictions"}
    for route in guarded.app.routes:
        assert isinstance(route, GuardedRoute)
        assert route.path.partition("/{")[0] in known | {"/v2/models", "/static"}, route.path


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_key_opens_its_door(guarded: Client, tokens: Any, header: str) -> None:
    """In either header."""
    token = tokens["predict"][0]
    value = f"Bearer {token}" if header == "Authorization" else token
    assert guarded.post(json=tiny_example(), headers={header: value}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-API-Key": "i2moe_wrong"}, {"Authorization": "Basic dTpw"}, {"Authorization": "Bearer "}, {"X-API-Key": ""}],
)
def test_nobody_gets_in_without_a_known_key(guarded: Client, headers: dict[str, str]) -> None:
    """Told what was expected and how to show it, never what was found."""
    response = guarded.post(json=tiny_example(), headers=headers)
    body = assert_error(response, 401, "UNAUTHORIZED")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "wrong" not in body["error"]


def test_a_key_opens_no_other_door(guarded: Client, tokens: Any) -> None:
    """One for scraping scores nobody, and one for scoring scrapes nothing."""
    as_prometheus, as_ward = ({"X-API-Key": tokens[scope][0]} for scope in ("metrics", "predict"))
    body = assert_error(guarded.post(json=tiny_example(), headers=as_prometheus), 403, "FORBIDDEN")
    assert body["error"] == "expected a key with scope predict, found one with metrics"
    assert_error(guarded.request("GET", "/metrics", headers=as_ward), 403, "FORBIDDEN")
    assert guarded.request("GET", "/metrics", headers=as_prometheus).status_code == 200
    assert guarded.request("GET", "/explanations", headers={"X-API-Key": tokens["explain"][0]}).status_code == 200


@pytest.mark.parametrize("path", [path for path, scope in NEEDS.items() if scope is not None])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "predict"])
def test_no_method_gets_by_without_a_key(guarded: Client, path: str, method: str) -> None:
    """Whether or not the path takes it, and whatever another header says that it is."""
    response = guarded.request(method, path, headers={"X-HTTP-Method-Override": "OPTIONS"})
    assert response.status_code == 401
    preflight = guarded.request("OPTIONS", path, headers={"X-HTTP-Method-Override": method})
    assert preflight.status_code == 405  # which runs nothing


@pytest.mark.parametrize("path", NEEDS)
def test_a_line_feed_opens_nothing(guarded: Client, tokens: Any, path: str) -> None:
    """Starlette's routes match a path with a line feed at its end, too: with or without a key there is nothing there."""
    headers: dict[str, str]
    for headers in ({}, {"X-API-Key": tokens["explain"][0]}):
        for method in ("GET", "HEAD", "POST"):
            assert guarded.request(method, f"{path}%0A", headers=headers).status_code == 404


SEGMENT = st.text(st.characters(exclude_characters="/\n", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(data=st.data())
def test_a_route_is_guarded_however_its_path_is_spelled(data: st.DataObject, guarded: Client) -> None:
    """Whatever path leads to a route that needs a scope: without a key it is 401, with one of another scope 403."""
    route = data.draw(st.sampled_from([route for route in all_routes() if route.needs is not None]))
    end = data.draw(st.sampled_from(["", "/", "//", " ", "\r", "\0", ";", "?x"]))
    path = re.sub(r"{\w+}", lambda _: data.draw(SEGMENT), route.path) + end
    if (found := matched(path)) is not None and found.needs is not None:
        assert guarded.request("POST", quote(path)).status_code == 401


def test_a_key_that_is_used_too_often_waits(guarded: Client, tokens: Any) -> None:
    """429 says for how long; other keys go on."""
    slow = {"X-API-Key": tokens["slow"][0]}
    assert [guarded.post(json=tiny_example(), headers=slow).status_code for _ in range(2)] == [200, 200]
    response = guarded.post(json=tiny_example(), headers=slow)
    assert_error(response, 429, "RATE_LIMITED")
    assert int(response.headers["retry-after"]) > 900
    assert guarded.post(json=tiny_example(), headers={"X-API-Key": tokens["predict"][0]}).status_code == 200


def test_refusals_are_counted(guarded: Client, tokens: Any) -> None:
    """By their code, as every other."""
    headers = {"X-API-Key": tokens["metrics"][0]}
    guarded.post(json=tiny_example())
    text = guarded.request("GET", "/metrics", headers=headers).text
    assert 'i2moe_rejected_total{reason="UNAUTHORIZED"}' in text
    assert tokens["metrics"][0] not in text


def test_open_paths_stay_open(guarded: Client) -> None:
    """The description, the page and probes."""
    assert guarded.get("/docs.json").status_code == 200
    assert guarded.get("/").status_code == 200
    assert guarded.get("/v2/health/ready").status_code == 200
    assert_error(guarded.get("/nothing"), 404, "NOT_FOUND")


def test_without_keys_everything_is_open(client: Client) -> None:
    """As before."""
    assert client.get("/metrics").status_code == 200


def test_settings_that_cannot_be_read_open_nothing_that_has_keys(
    tiny_path: Path, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is misspelt: the service is not ready, says why, and lets nobody in, with or without a key."""
    (tmp_path / "keys.toml").write_text(tokens["metrics"][1])
    for name, value in {"BUNDLE": tiny_path, "api_keys": tmp_path / "keys.toml", "QUEUE_MAX": "many"}.items():
        monkeypatch.setenv(f"I2MOE_{name}", str(value))
    monkeypatch.setattr("service.api.runtime.configure_logging", lambda level, form: None)
    with serving_runtime(Runtime.from_environment()) as client:
        assert "I2MOE_QUEUE_MAX" in assert_error(client.get("/v2/health/ready"), 503, "MODEL_NOT_READY")["error"]
        assert_error(client.get("/metrics"), 401, "UNAUTHORIZED")
        assert_error(client.request("GET", "/metrics", headers={"X-API-Key": tokens["metrics"][0]}), 401, "UNAUTHORIZED")


@pytest.mark.slow
def test_a_file_that_cannot_be_used_lets_nobody_in(tiny_path: Path, tmp_path: Path) -> None:
    """The real process stays up, unready, saying why; what is guarded stays shut, the probes answer."""
    path = tmp_path / "keys.toml"
    path.write_text("[[keys]")
    with running_server(tiny_path, tmp_path, ready=False, environment={"I2MOE_API_KEYS": str(path)}) as server:
        ready = server.wait_until_status("/readyz", 503)
        assert "cannot be read as TOML" in ready.json()["error"]
        assert server.get("/metrics").status_code == 401
        assert server.post("/predict", tiny_example()).status_code == 401


@pytest.mark.slow
def test_the_real_process_asks_for_keys(tiny_path: Path, tmp_path: Path) -> None:
    """Ahead of BentoML's layers too, and no key is ever logged."""
    token, lines = new_key("ward", ["predict"])
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    settings = {"I2MOE_API_KEYS": str(path), "I2MOE_ACCESS_LOG": "true", "I2MOE_LOG_LEVEL": "DEBUG"}
    with running_server(tiny_path, tmp_path, environment=settings) as server:
        assert server.post("/predict", tiny_example()).status_code == 401
        import httpx

        answer = httpx.post(f"{server.url}/predict", json=tiny_example(), headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert server.get("/livez").status_code == 200
        assert server.get("/readyz").status_code == 200
        assert token not in server.log
