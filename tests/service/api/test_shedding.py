"""Refusals below ASGI: which requests are refused before there is an application, how, and what becomes of all others."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.api.metrics import Metrics
from service.api.settings import Settings
from service.api.shedding import SheddingProtocol
from tests.service.api.error_shape import assert_error
from tests.serving import free_port, running_server
from tests.tiny_bundle import tiny_example, write_tiny_bundle


class Full:
    """A runtime whose queue is full, as long as it is said to be."""

    def __init__(self) -> None:
        self.is_full, self.tracing, self.metrics, self.settings = True, None, Metrics(), Settings.model_construct()

    def count(self, series: str) -> float:
        lines = self.metrics.render().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Whatever gets here is read whole and told so."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await PlainTextResponse("asgi")(scope, receive, send)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    runtime = Full()
    monkeypatch.setattr(SheddingProtocol, "runtime_of", staticmethod(lambda: runtime), raising=False)
    return runtime


@pytest.fixture
def port(full: Full) -> Iterator[int]:
    """A server with this protocol."""
    del full
    config = uvicorn.Config(application, port=(port := free_port()), http=SheddingProtocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(10)


def test_what_is_to_be_scored_is_refused_in_the_services_shape(full: Full, port: int) -> None:
    """503 with Retry-After and the caller's id on a connection that lives on; counted; once there is room it is served again."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for path in ("/predict", "/predict?x=1", "/v2/models/m/infer"):
            refused = client.post(path, content=b"0" * 300_000, headers={"X-Request-ID": "visit-1"})
            assert assert_error(refused, 503, "OVERLOADED")["request_id"] == refused.headers["x-request-id"] == "visit-1"
            assert (refused.headers["retry-after"], "date" in refused.headers) == ("1", True)
        assert client.post("/predict", headers={"X-Request-ID": "not plain"}).headers["x-request-id"] != "not plain"
        full.is_full = False
        assert client.post("/predict", content=b"0" * 300_000).text == "asgi"
    assert full.count('i2moe_rejected_total{reason="OVERLOADED"}') == 4
    assert full.count('i2moe_request_duration_seconds_count{route="/predict",status="503"}') == 3


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/predict", {}),
        ("POST", "/predictx", {}),
        ("POST", "/cds-services/a", {}),
        ("POST", "/predict", {"Accept": "application/fhir+json"}),
        ("POST", "/predict", {"Connection": "close"}),
        ("POST", "/predict%0A", {}),
    ],
)
def test_all_else_goes_on(port: int, method: str, path: str, headers: dict[str, str]) -> None:
    """Other routes, other forms of an answer, and what is not plain."""
    assert httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=headers).text == "asgi"


def test_where_traces_are_kept_everything_goes_on(full: Full, port: int) -> None:
    """A trace begins with the application."""
    full.tracing = SimpleNamespace()  # type: ignore[assignment]
    assert httpx.post(f"http://127.0.0.1:{port}/predict").text == "asgi"


def received(port: int, *parts: bytes) -> bytes:
    """All that comes back for these bytes, until a while passes without any."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        answer = b""
        try:
            while piece := connection.recv(65_536):
                answer += piece
        except TimeoutError:
            pass
        return answer


def test_a_refusal_does_not_wait_for_a_body(port: int) -> None:
    """A client that stalls is told at once; what it sends later is passed over, and its next request is one."""
    head = b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\n"
    assert received(port, head).startswith(b"HTTP/1.1 503 ")
    both = received(port, head, b"ab", b"cd" + b"GET /x HTTP/1.1\r\nHost: t\r\n\r\n")
    assert both.count(b"HTTP/1.1 503 ") == 1
    assert both.endswith(b"asgi")


def test_requests_that_come_together_are_answered_in_order(port: int) -> None:
    """Two to be refused after one another, and one behind a request that is still being answered."""
    refused = b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}"
    served = b"GET /x HTTP/1.1\r\nHost: t\r\n\r\n"
    statuses = re.findall(rb"HTTP/1.1 (\d+)", received(port, refused + refused + served + refused))
    assert statuses == [b"503", b"503", b"200", b"200"]  # the last went to the application, which refuses by itself


def test_http_1_0_and_expect_go_on(port: int) -> None:
    """Rare, and uvicorn's."""
    assert b"asgi" in received(port, b"POST /predict HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    expecting = b"POST /predict HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert b"100 Continue" in received(port, expecting, b"{}")


@pytest.mark.slow
def test_the_real_process_refuses_like_this(tmp_path: Path) -> None:
    """While one sample waits where one may: the next is refused though its body never comes."""
    settings = {"I2MOE_QUEUE_MAX": "1", "I2MOE_MAX_WAIT_MS": "1000", "I2MOE_MAX_INSTANCES": "1"}
    with running_server(write_tiny_bundle(tmp_path / "bundle").path, tmp_path / "server", environment=settings) as server:
        port, answers = int(server.url.rpartition(":")[2]), dict[str, Any]()
        waiting = threading.Thread(target=lambda: answers.update(first=server.post("/predict", tiny_example())))
        waiting.start()
        time.sleep(0.3)
        told = received(port, b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 99\r\n\r\n")
        waiting.join()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["code"] == "OVERLOADED"
        assert answers["first"].status_code == 200
        assert server.metric('i2moe_rejected_total{reason="OVERLOADED"}') == 1
