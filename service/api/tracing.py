"""Traces by OpenTelemetry, where they are asked for: one span per request, and one for each part of its work.

Parts are timed anyway, for the metrics, so their spans are made when they are over. Attributes come from fixed sets and counts:
no value, no id, no path, and of what a client sends about its trace only `traceparent`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from time import perf_counter
from typing import TYPE_CHECKING

from service.api.route_labels import OTHER_ROUTE, route_label

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Attribute = str | int | float
SERVICE_NAME = "i2moe-service"  # unless OTEL_SERVICE_NAME says otherwise
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_UNTRACED = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TO_INSTALL = "traces need an exporter: pip install 'i2moe-service[traces]'"


class RequestTrace:
    """The span of one request, and of its parts below it."""

    def __init__(self, tracer: "Tracer", *, method: str, path: str, traceparent: str | None) -> None:
        """Begin now, below the caller's span where it named one."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name, known = _named(method, route_label(path))
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        self._tracer = tracer
        self._zero_ns = time.time_ns() - int(1e9 * perf_counter())  # when perf_counter was nought
        self._span: Span = tracer.start_span(
            name,
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            attributes=known,
        )
        self._below = set_span_in_context(self._span)

    @property
    def id(self) -> str:
        """The trace's id as W3C writes it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def add(self, name: str, started_s: float, ended_s: float, attributes: dict[str, Attribute]) -> None:
        """A part that is over; times are `perf_counter`'s."""
        if self._span.is_recording():
            span = self._tracer.start_span(name, context=self._below, start_time=self._ns(started_s), attributes=attributes)
            span.end(self._ns(ended_s))

    def _ns(self, seconds: float) -> int:
        return self._zero_ns + int(1e9 * seconds)

    def end(self, status: int) -> None:
        """The request is answered, or was left (499)."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _named(method: str, route: str) -> tuple[str, dict[str, str]]:
    """The span's name and attributes as OpenTelemetry's conventions for HTTP servers have it, where either may be nobody's."""
    attributes = {"http.request.method": method if method in _METHODS else "_OTHER"}
    name = method if method in _METHODS else "HTTP"
    if route == OTHER_ROUTE:
        return name, attributes
    return f"{name} {route}", attributes | {"http.route": route}


_current: ContextVar[RequestTrace | None] = ContextVar("i2moe_trace", default=None)


def begin_traced(trace: RequestTrace | None) -> Token[RequestTrace | None] | None:
    """Parts that follow in this context belong to this request."""
    return None if trace is None else _current.set(trace)


def end_traced(token: Token[RequestTrace | None] | None) -> None:
    """Parts that follow belong to none."""
    if token is not None:
        _current.reset(token)


def add_span(name: str, started_s: float, ended_s: float, **attributes: Attribute) -> None:
    """Tell of a part of the current request that is over, where it is traced; times are `perf_counter`'s."""
    if (trace := _current.get()) is not None:
        trace.add(name, started_s, ended_s, attributes)


@contextmanager
def spanned(name: str) -> Iterator[None]:
    """Tell how long the block took, whatever came of it."""
    started = perf_counter()
    try:
        yield
    finally:
        add_span(name, started, perf_counter())


class Tracing:
    """Makes traces and hands them to an exporter, in a thread of the SDK's."""

    def __init__(self, exporter: "SpanExporter", *, at_once: bool = False) -> None:
        """`at_once` exports each span when it ends, for tests; else many together. The SDK's OTEL_* variables apply."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": SERVICE_NAME}
        self._provider = TracerProvider(resource=Resource.create(named))
        self._provider.add_span_processor(SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("i2moe")

    def begin(self, *, method: str, path: str, traceparent: str | None) -> RequestTrace | None:
        """The trace of a request that arrives; None for probes and scrapes."""
        if path in _UNTRACED:
            return None
        return RequestTrace(self._tracer, method=method, path=path, traceparent=traceparent)

    def close(self) -> None:
        """Export what has ended. Waits for the collector."""
        self._provider.shutdown()


def open_tracing(wanted: bool | None) -> tuple[Tracing | None, str | None]:
    """Traces over OTLP and HTTP, where `wanted` or, with None, where OTEL_* names a collector; else why there are none."""
    named = any(map(os.environ.get, _ENDPOINTS)) and os.environ.get("OTEL_TRACES_EXPORTER") != "none"  # others may want metrics
    if wanted is False or (wanted is None and not named):
        return None, None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        return None, _TO_INSTALL
    return Tracing(OTLPSpanExporter()), None
