import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.api.app import build_app
from service.api.middleware import RequestMiddleware
from service.api.runtime import Runtime
from service.api.settings import Settings
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, running, serving, serving_runtime
from tests.tiny_bundle import tiny_example, write_tiny_bundle

SENTINEL = "ZQX7731"  # stands for a patient's value

UNREADABLE = {
    "nothing": b"",
    "white space": b"  \n",
    "half": b'{"instances": [',
    "text": b"crea 1.4",
    "NaN": b'{"labs": {"crea": NaN}}',
    "Infinity": b'{"labs": {"crea": -Infinity}}',
    "a comment": b'{"labs": {} /* none */}',
    "two documents": b"{}{}",
    "not UTF-8": b'{"labs": {"crea": "\xff\xfe"}}',
    "half a surrogate": b'{"id": "\\ud800"}',
    "too deep": b'{"labs":' * 5000,
    "a number": b"17",
    "a list": b'[{"labs": {"crea": 1}}]',
    "null": b"null",
    "a string": b'"labs"',
    "a number of 5000 digits": b'{"labs": {"crea": ' + b"1" * 5000 + b"}}",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_body_that_cannot_be_read_is_400(client: Client, body: bytes) -> None:
    """What is not a JSON object is refused in one sentence."""
    assert client.refused(400, "INVALID_JSON", content=body)["detail"] == []


ENVELOPES: dict[str, tuple[Any, list[str | int], str]] = {
    "empty object": ({}, ["instances"], "missing"),
    "no instances": ({"explain": True}, ["instances"], "missing"),
    "empty instances": ({"instances": []}, ["instances"], "too_short"),
    "instances is an object": ({"instances": {"labs": {}}}, ["instances"], "list_type"),
    "instances is null": ({"instances": None}, ["instances"], "list_type"),
    "explain is a string": ({"instances": [{}], "explain": "yes"}, ["explain"], "explain_type"),
    "explain is a number": ({"instances": [{}], "explain": 1}, ["explain"], "explain_type"),
    "explain is null": ({"instances": [{}], "explain": None}, ["explain"], "explain_type"),
    "unknown key": ({"instances": [{}], "options": {}}, ["options"], "extra_forbidden"),
    "bare with a bad explain": ({"labs": {"crea": 1}, "explain": 3}, ["explain"], "explain_type"),
    "bare with an unknown modality": ({"labs": {"crea": 1}, "image": []}, ["image"], "unknown_modality"),
    "bare with an unknown feature": ({"labs": {"K": 1}}, ["labs", "K"], "unknown_feature"),
    "a record that is a list": ({"instances": [[1, 2]]}, ["instances", 0], "record_type"),
    "an empty record": ({"instances": [{}]}, ["instances", 0], "missing"),
    "a record of nulls": ({"instances": [{"labs": None}]}, ["instances", 0], "missing"),
    "a boolean id": ({"instances": [{"id": True, "labs": {"crea": 1}}]}, ["instances", 0, "id"], "id_type"),
    "an object as id": ({"instances": [{"id": {}, "labs": {"crea": 1}}]}, ["instances", 0, "id"], "id_type"),
    "a string as number": ({"labs": {"crea": "1.4"}}, ["labs", "crea"], "number_type"),
    "a boolean as number": ({"labs": {"crea": True}}, ["labs", "crea"], "number_type"),
    "a number beyond floats": ({"labs": {"crea": 1e300}}, ["labs", "crea"], "finite_number"),
    "a vector of the wrong length": ({"labs": [1]}, ["labs"], "vector_length"),
    "a modality that is a number": ({"labs": 3}, ["labs"], "modality_type"),
    "a category position that does not exist": ({"history": [60, 2]}, ["history", 1], "category_position"),
}


@pytest.mark.parametrize(("document", "loc", "type_"), ENVELOPES.values(), ids=ENVELOPES)
def test_a_request_that_cannot_be_answered_is_422_with_its_place(
    client: Client, document: Any, loc: list[str | int], type_: str
) -> None:
    """Each mistake names the path that leads to it and a stable word for it."""
    body = client.refused(422, "INVALID_INPUT", json=document)
    assert {"loc": loc, "type": type_} in [{"loc": place["loc"], "type": place["type"]} for place in body["detail"]]


def test_an_overflowing_exponent_is_not_a_number(client: Client) -> None:
    """1e999 is JSON, but no finite number."""
    body = client.refused(422, "INVALID_INPUT", content=b'{"labs": {"crea": 1e999}}')
    assert body["detail"][0]["type"] == "finite_number"


def test_too_many_instances_say_expected_and_found(tiny_path: Path) -> None:
    """One request holds at most MAX_INSTANCES."""
    with serving(tiny_path, max_instances=3) as client:
        assert len(client.predict({"instances": [tiny_example()] * 3})["predictions"]) == 3
        body = client.refused(422, "INVALID_INPUT", json={"instances": [tiny_example()] * 4})
        assert body["error"] == "instances must hold at most 3 instances, found 4"
        assert body["detail"][0]["loc"] == ["instances"]


def test_a_flood_of_problems_gets_a_short_answer(client: Client) -> None:
    """Of thousands of problems the first hundred are told, and how many more there are."""
    bad = {"labs": {f"x{i}": 1 for i in range(60)}}
    body = client.refused(422, "INVALID_INPUT", json={"instances": [bad] * 50})
    assert len(body["detail"]) == 101
    assert body["detail"][-1] == {"loc": [], "type": "more_problems", "msg": "and 2900 more problems"}


def test_a_declared_large_body_is_413(tiny_path: Path) -> None:
    """A Content-Length beyond the limit is refused; the limit itself is not."""
    body = json.dumps(tiny_example()).encode()
    with serving(tiny_path, max_body_bytes=len(body)) as client:
        assert client.post(content=body).status_code == 200
        told = client.refused(413, "BODY_TOO_LARGE", content=body + b" ")
        assert told["error"] == f"expected a body of at most {len(body)} bytes, found {len(body) + 1}"


def test_a_streamed_large_body_is_refused_before_it_is_read_to_the_end(tiny_path: Path) -> None:
    """Without a Content-Length the bytes are counted, and reading stops at the limit."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 1000

    async def scenario() -> httpx.Response:
        runtime = Runtime(Settings(bundle=tiny_path, num_threads=1, max_body_bytes=10_000))
        async with running(build_app(lambda: runtime)) as http:
            return await http.post("/predict", content=chunks())

    assert_error(asyncio.run(scenario()), 413, "BODY_TOO_LARGE")
    assert sent <= 12


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}],
)
def test_what_is_declared_not_to_be_json_text_is_415(client: Client, headers: dict[str, str]) -> None:
    """Multipart forms and compressed bodies are refused by name."""
    client.refused(415, "UNSUPPORTED_MEDIA_TYPE", content=b"{}", headers=headers)


@pytest.mark.parametrize("path", ["/nope", "/predict/nope", "/%00", f"/patients/{SENTINEL}"])
def test_an_unknown_path_is_404_in_the_same_shape(client: Client, path: str) -> None:
    """The answer does not repeat the path."""
    response = client.get(path)
    assert_error(response, 404, "NOT_FOUND")
    assert SENTINEL not in response.text


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/predict", "POST"), ("POST", "/model", "GET"), ("DELETE", "/metrics", "GET")]
)
def test_a_wrong_method_is_405_in_the_same_shape(client: Client, method: str, path: str, allowed: str) -> None:
    """The Allow header says what would work."""
    response = client.request(method, path)
    assert_error(response, 405, "METHOD_NOT_ALLOWED")
    assert allowed in response.headers["allow"]


def test_a_full_queue_is_503_with_retry_after(tiny_path: Path) -> None:
    """When more samples would wait than QUEUE_MAX, the rest is refused at once and told when to come back."""

    async def scenario() -> list[httpx.Response]:
        runtime = Runtime(Settings(bundle=tiny_path, num_threads=1, queue_max=8, max_instances=8, max_wait_ms=300))
        async with running(build_app(lambda: runtime)) as http:
            batches = [{"instances": [tiny_example()] * 8}] * 6
            return await asyncio.gather(*[http.post("/predict", json=batch) for batch in batches])

    responses = asyncio.run(scenario())
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 503}
    for response in responses:
        if response.status_code == 503:
            assert_error(response, 503, "OVERLOADED")


SCORING = ("/predict", "/v2/models/tiny/infer", "/cds-services/any", "/fhir/RiskAssessment/$evaluate")


@pytest.mark.parametrize("path", SCORING)
def test_while_the_queue_is_full_a_request_is_refused_unread(tiny_path: Path, path: str) -> None:
    """Not even its body is asked for, by every route that scores; the others answer as ever."""

    async def scenario() -> None:
        runtime = Runtime(Settings(bundle=tiny_path, num_threads=1, queue_max=8, max_instances=8, max_wait_ms=1000))
        app = build_app(lambda: runtime)
        async with running(app) as http:
            waiting = asyncio.create_task(http.post("/predict", json={"instances": [tiny_example()] * 8}))
            while not runtime.is_full:
                await asyncio.sleep(0.001)
            refused = await http.post(path, content=_unread())
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "too many samples are waiting" in refused.text
            assert (await http.get("/model")).status_code == 200
            assert (await http.post("/outcomes", json={})).status_code != 503
            assert (await waiting).status_code == 200

    async def _unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    asyncio.run(scenario())


def test_a_request_that_takes_too_long_is_504(tiny_path: Path) -> None:
    """The deadline holds for waiting too."""
    with serving(tiny_path, timeout_s=0.05, max_wait_ms=1000) as client:
        body = client.refused(504, "TIMEOUT", json=tiny_example())
        assert body["error"] == "expected an answer within 0.05 s, found none"


def test_without_a_bundle_the_service_lives_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """No I2MOE_BUNDLE: one logged line, 503 with the reason, and the routes that need no model still answer."""
    with serving(None) as client:
        body = client.refused(503, "MODEL_NOT_READY", json=tiny_example())
        assert "I2MOE_BUNDLE is not set" in body["error"]
        assert_error(client.get("/model"), 503, "MODEL_NOT_READY")
        assert_error(client.get("/explanations"), 503, "MODEL_NOT_READY")
        assert client.metric("i2moe_ready") == 0
        assert client.get("/docs.json").status_code == 200
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "I2MOE_BUNDLE is not set" in errors[0]


def test_a_damaged_bundle_is_never_served(tmp_path: Path) -> None:
    """A graph whose bytes differ from the manifest's hash keeps the service unready, with the reason."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    bundle.model_path.write_bytes(bundle.model_path.read_bytes()[:-1] + b"\0")
    with serving(bundle.path) as client:
        assert "damaged" in client.refused(503, "MODEL_NOT_READY", json=tiny_example())["error"]


def test_a_bundle_whose_example_gets_another_answer_is_never_served(tmp_path: Path) -> None:
    """The recorded answer is the proof that this machine computes what was validated."""
    from tests.tiny_bundle import tiny_answer

    wrong = tiny_answer().model_copy(update={"logits": (0.0, 2.2)})
    bundle = write_tiny_bundle(tmp_path / "bundle", answer=wrong)
    with serving(bundle.path) as client:
        error = client.refused(503, "MODEL_NOT_READY", json=tiny_example())["error"]
        assert "away from its recorded answer" in error


def test_a_required_gpu_that_is_not_there_keeps_the_service_unready(tiny_path: Path) -> None:
    """I2MOE_REQUIRE_GPU never serves from the CPU."""
    with serving(tiny_path, require_gpu=True, provider="cpu") as client:
        assert "I2MOE_REQUIRE_GPU" in client.refused(503, "MODEL_NOT_READY", json=tiny_example())["error"]


def test_an_unexpected_failure_while_loading_is_told_by_its_type(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug in loading leaves a process that lives and says that it is not ready."""
    import service.api.runtime as module

    def explode(*_: object) -> None:
        raise ZeroDivisionError(SENTINEL)

    monkeypatch.setattr(module, "load_model", explode)
    with serving(tiny_path) as client:
        body = client.refused(503, "MODEL_NOT_READY", json=tiny_example())
        assert body["error"] == "no model is ready: the model could not be loaded (ZeroDivisionError)"


def test_after_closing_requests_are_told_that_the_service_goes_down(tiny_path: Path) -> None:
    """What arrives during shutdown is 503, not an internal error."""

    async def scenario() -> httpx.Response:
        runtime = Runtime(Settings(bundle=tiny_path, num_threads=1))
        async with running(build_app(lambda: runtime)) as http:
            await runtime.require_model().batcher.close()
            return await http.post("/predict", json=tiny_example())

    assert_error(asyncio.run(scenario()), 503, "MODEL_NOT_READY")


async def explode(request: Request) -> Response:
    """A bug that puts what the client sent into its exception."""
    body = await request.body()
    raise ValueError(f"could not convert {body.decode()}")


async def teapot(request: Request) -> Response:
    """A refusal in somebody else's shape."""
    return PlainTextResponse("short and stout", status_code=418)


@pytest.fixture
def extended(tiny_path: Path) -> Any:
    """A client of an application with two misbehaving routes."""
    with serving_runtime(Runtime(Settings(bundle=tiny_path, num_threads=1, access_log=True))) as client:
        client.app.router.routes += [Route("/explode", explode, methods=["POST"]), Route("/teapot", teapot)]
        yield client


def test_a_bug_is_500_without_values_in_answer_or_log(extended: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The answer is generic; the log has the request id, the exception's type and the code lines, not its text."""
    caplog.set_level(logging.DEBUG)
    response = extended.request("POST", "/explode", content=SENTINEL.encode())
    body = assert_error(response, 500, "INTERNAL")
    assert SENTINEL not in response.text
    assert SENTINEL not in caplog.text
    assert body["request_id"] in caplog.text
    assert "ValueError" in caplog.text
    assert "raise ValueError" in caplog.text


def test_a_bug_outside_the_routes_is_500_too(client: Client) -> None:
    """An exception of the framework around the routes, before any answer, gets our shape."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(SENTINEL)

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(RequestMiddleware(broken, runtime_of=lambda: client.runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get("/model")

    response = asyncio.run(scenario())
    assert_error(response, 500, "INTERNAL")
    assert SENTINEL not in response.text


def test_a_refusal_in_another_shape_is_reworded(extended: Client) -> None:
    """Whatever status the framework chooses, the shape is ours."""
    assert_error(extended.get("/teapot"), 418, "HTTP_418")


def test_no_answer_repeats_what_was_sent(client: Client) -> None:
    """Errors of every kind name places and kinds, never values."""
    bodies = [
        f'{{"labs": {{"crea": "{SENTINEL}"}}}}',
        f'{{"labs": {{"crea": {SENTINEL}}}}}',
        f'{{"instances": "{SENTINEL}"}}',
        f'{{"instances": [{{"labs": {{"crea": 1}}}}], "explain": "{SENTINEL}"}}',
        f'{{"instances": ["{SENTINEL}"]}}',
        f'{{"labs": "{SENTINEL}"}}',
        f'{{"labs": ["{SENTINEL}", 1]}}',
        f'{{"history": {{"sex": ["{SENTINEL}"]}}}}',
        f'"{SENTINEL}"',
    ]
    for body in bodies:
        response = client.post(content=body.encode())
        assert response.status_code in {400, 422}
        assert SENTINEL not in response.text
