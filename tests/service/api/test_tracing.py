"""Traces: which spans a request has, what they say, whose trace they continue; and that there are none unless asked for."""

import builtins
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.api import tracing
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.api.tracing import Tracing, add_span, open_tracing
from tests.service.api.in_process import Client, serving_runtime
from tests.service.api.otlp_collector import running_collector
from tests.serving import running_server
from tests.tiny_bundle import POISON, tiny_example

TRACE_ID, CALLER_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_ID}-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def _no_otel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing._ENDPOINTS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps what is exported."""
    return InMemorySpanExporter()


@pytest.fixture
def client(poisoned_path: Path, tmp_path: Path, exporter: InMemorySpanExporter) -> Iterator[Client]:
    """A client of a service that traces and keeps predictions."""
    url: Any = f"sqlite:///{tmp_path / 'kept.db'}"
    settings = Settings(bundle=poisoned_path, num_threads=1, audit_url=url, access_log=True)
    with serving_runtime(Runtime(settings, tracing=Tracing(exporter, at_once=True))) as client:
        exporter.clear()
        yield client


def spans(exporter: InMemorySpanExporter) -> tuple[list[ReadableSpan], ReadableSpan]:
    """The parts of the one request that was made, in order of their beginning, and its own span."""
    *parts, own = exporter.get_finished_spans()
    return sorted(parts, key=lambda span: span.start_time or 0), own


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_prediction_has_a_span_for_each_part(client: Client, exporter: InMemorySpanExporter) -> None:
    """Below the request's, one after the other and within it, with the route and the status."""
    client.predict({"instances": [tiny_example()] * 3})
    parts, own = spans(exporter)
    assert [span.name for span in parts] == ["read", "queue", "inference", "write", "audit"]
    assert (own.name, own.kind, own.parent) == ("POST /predict", SpanKind.SERVER, None)
    assert attributes(own) == {"http.request.method": "POST", "http.route": "/predict", "http.response.status_code": 200}
    told = {"i2moe.samples": 3, "i2moe.batch_size": 3, "i2moe.failures": 0, "i2moe.provider": "CPUExecutionProvider"}
    assert [attributes(span) for span in parts] == [{}, {}, told, {}, {}]
    assert own.context is not None
    for span in parts:
        assert span.parent is not None
        assert span.parent.span_id == own.context.span_id
        assert own.start_time is not None
        assert own.end_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert own.start_time - 1000 <= span.start_time <= span.end_time <= own.end_time + 1000  # clocks are read in turn


def test_the_callers_trace_is_continued(client: Client, exporter: InMemorySpanExporter) -> None:
    """By W3C's traceparent; whatever else a caller says about its trace is not passed on."""
    client.predict(tiny_example(), headers={"traceparent": TRACEPARENT, "tracestate": "vendor=ZQX7731", "baggage": "id=ZQX7731"})
    _, own = spans(exporter)
    assert own.context is not None
    assert own.parent is not None
    assert (f"{own.context.trace_id:032x}", f"{own.parent.span_id:016x}") == (TRACE_ID, CALLER_ID)
    assert not own.context.trace_state
    assert "ZQX7731" not in own.to_json()


@pytest.mark.parametrize("header", ["", "ZQX7731", f"00-{'0' * 32}-{CALLER_ID}-01", "ff" + TRACEPARENT[2:]])
def test_a_traceparent_that_is_none_begins_a_new_trace(client: Client, exporter: InMemorySpanExporter, header: str) -> None:
    """As W3C says."""
    client.predict(tiny_example(), headers={"traceparent": header})
    _, own = spans(exporter)
    assert own.parent is None
    assert "ZQX7731" not in own.to_json()


def test_a_caller_that_does_not_record_is_not_recorded(client: Client, exporter: InMemorySpanExporter) -> None:
    """Its sampling decision holds for the whole trace."""
    client.predict(tiny_example(), headers={"traceparent": TRACEPARENT[:-1] + "0"})
    assert exporter.get_finished_spans() == ()


def test_failures_are_told_by_status_alone(client: Client, exporter: InMemorySpanExporter) -> None:
    """A model that fails is an error of the service, a bad request none."""
    assert client.post(json={"labs": {"crea": POISON}}).status_code == 500
    parts, own = spans(exporter)
    assert own.status.status_code is StatusCode.ERROR
    assert (attributes(own)["http.response.status_code"], attributes(own)["error.type"]) == (500, "500")
    assert attributes(parts[2])["i2moe.failures"] == 1
    exporter.clear()
    assert client.post(json={"labs": {"ZQX7731": 1}}, params={"patient": "ZQX7731"}).status_code == 422
    (read,), refused = spans(exporter)
    assert (read.name, attributes(refused)["http.response.status_code"]) == ("read", 422)
    assert "error.type" not in attributes(refused)
    assert refused.status.status_code is StatusCode.UNSET
    assert "ZQX7731" not in refused.to_json()


def test_probes_and_scrapes_are_not_traced(client: Client, exporter: InMemorySpanExporter) -> None:
    """They would bury everything else; unknown paths share a name, and unknown methods do."""
    client.get("/metrics")
    client.get("/v2/health/live")
    assert exporter.get_finished_spans() == ()
    client.request("ZQX7731", "/patients/ZQX7731")
    (own,) = exporter.get_finished_spans()
    assert (own.name, attributes(own)["http.request.method"]) == ("HTTP", "_OTHER")
    assert "http.route" not in attributes(own)
    assert "ZQX7731" not in own.to_json()


@pytest.mark.parametrize(("wanted", "endpoint"), [(None, ""), (False, "http://127.0.0.1:9")])
def test_there_are_no_traces_unless_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None, endpoint: str
) -> None:
    """By the setting, or by OpenTelemetry's own variable where the setting says nothing."""
    monkeypatch.setenv(ENDPOINT, endpoint)
    assert open_tracing(wanted) == (None, None)


def test_a_collector_of_metrics_alone_gets_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a platform says so by OpenTelemetry's own variable; the setting is stronger."""
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert open_tracing(None) == (None, None)
    found, _ = open_tracing(True)
    assert found is not None
    found.close()


@pytest.mark.parametrize(("name", "expected"), [(None, "i2moe-service"), ("ward-7", "ward-7")])
def test_traces_are_of_a_service_whose_name_may_be_chosen(
    monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter, name: str | None, expected: str
) -> None:
    """By OTEL_SERVICE_NAME."""
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    if name is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    trace = Tracing(exporter, at_once=True).begin(method="GET", path="/model", traceparent=None)
    assert trace is not None
    trace.end(200)
    (span,) = exporter.get_finished_spans()
    assert span.resource.attributes["service.name"] == expected


@pytest.mark.parametrize(("wanted", "endpoint"), [(True, None), (None, "http://127.0.0.1:9")])
def test_traces_are_exported_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None, endpoint: str | None
) -> None:
    """Either way."""
    if endpoint is not None:
        monkeypatch.setenv(ENDPOINT, endpoint)
    found, problem = open_tracing(wanted)
    assert (found is not None, problem) == (True, None)
    assert found is not None
    found.close()


@pytest.mark.parametrize("wanted", ["true", None])
def test_without_the_exporter_the_service_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: str | None
) -> None:
    """It does not open where traces were asked of it, and only warns where a platform asks everybody."""
    plain = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(name)
        return plain(name, *rest, **options)

    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    if wanted is not None:
        monkeypatch.setenv("I2MOE_TRACES", wanted)
    monkeypatch.setattr(logging.getLogger("i2moe"), "handlers", [])
    monkeypatch.setattr("service.api.runtime.configure_logging", lambda level, form: None)
    monkeypatch.setattr(builtins, "__import__", without)
    runtime = Runtime.from_environment()
    assert runtime.tracing is None
    needed = "pip install 'i2moe-service[traces]'"
    assert (needed in (runtime._problem or ""), needed in caplog.text) == (wanted is not None, wanted is None)


def test_parts_of_no_trace_are_told_to_nobody() -> None:
    """What times itself need not know whether anybody traces."""
    add_span("read", 0.0, 1.0)


@pytest.mark.slow
def test_the_real_process_exports_to_a_collector(poisoned_path: Path, tmp_path: Path) -> None:
    """Over OTLP and HTTP, by OpenTelemetry's own variables; log lines name the trace, and what is left is exported at the end."""
    with running_collector() as collector:
        environment = {
            ENDPOINT: collector.url,
            "I2MOE_ACCESS_LOG": "1",
            "I2MOE_LOG_FORMAT": "json",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        with running_server(poisoned_path, tmp_path, environment=environment) as server:
            assert server.post("/predict", tiny_example()).status_code == 200
            own = collector.wait_for("POST /predict")
            trace_id = own.trace_id.hex()
            assert server.get("/model").status_code == 200
            assert server.terminate() == 0
            lines = [json.loads(line) for line in server.log.splitlines()]
    assert [line["route"] for line in lines if line.get("trace_id") == trace_id] == ["/predict"]
    names = {span.name for span in collector.spans if span.trace_id == own.trace_id}
    assert names == {"POST /predict", "read", "queue", "inference", "write"}
    assert "GET /model" in {span.name for span in collector.spans}
    assert collector.services == {"i2moe-service"}
