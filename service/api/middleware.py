"""Around every request: its id, one error shape, its duration, a log line that names no value.

Where nothing more may wait, what is to be scored is refused here, before any of it is read: in overload, refusals take the time
that answers need. So is a path with a line feed: Starlette's `/predict` matches one with a line feed more at its end, which no
metric and no proxy takes for it. Also words the plain-text refusals of BentoML and Starlette (404, 405, 503 of /readyz, 500) in
the one shape.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import (
    ApiError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
    OtherHttpError,
    OverloadedError,
    error_response,
)
from service.api.logs import FIELDS, Served, begin_served, end_served, places
from service.api.negotiation import FHIR_JSON
from service.api.route_labels import SCORING_ROUTES, route_label
from service.api.runtime import Runtime
from service.api.tracing import RequestTrace, begin_traced, end_traced
from service.audit.entries import is_plain_id

logger = logging.getLogger("i2moe.http")
access_logger = logging.getLogger("i2moe.access")

REQUEST_ID_HEADER = "X-Request-ID"
_SCOPE_KEY = "i2moe.request"
_NOTHING = "there is nothing at this path; GET /docs.json describes every path"
_OWN_TYPES = ("application/json", FHIR_JSON)  # of answers that need no rewording


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What is known about a request before it is read."""

    id: str
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started


def request_info(connection: HTTPConnection) -> RequestInfo:
    """The info that the middleware left with the request."""
    info: RequestInfo = connection.scope[_SCOPE_KEY]
    return info


def request_id_of(headers: Headers) -> str:
    """The caller's X-Request-ID where it is plain enough for a log line, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if is_plain_id(given) else uuid.uuid4().hex


class RequestMiddleware:
    """ASGI middleware around the whole application, BentoML's own routes included."""

    def __init__(self, app: ASGIApp, *, runtime_of: Callable[[], Runtime]) -> None:
        """`runtime_of` is asked at each request: the runtime is made after the middleware."""
        self._app = app
        self._runtime_of = runtime_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, runtime = Headers(scope=scope), self._runtime_of()
        info = scope[_SCOPE_KEY] = RequestInfo(request_id_of(headers))
        trace = _begin_trace(runtime, scope, headers)
        exchange = _Exchange(scope, receive, send, runtime, trace)
        served, traced = begin_served(Served(info.id, None if trace is None else trace.id)), begin_traced(trace)
        try:
            if "\n" in scope["path"]:
                await exchange.refuse(NotFoundError(_NOTHING))
            elif runtime.is_full and scope["method"] == "POST" and route_label(scope["path"]) in SCORING_ROUTES:
                await exchange.refuse(OverloadedError())
            else:
                await self._app(scope, receive, exchange.send)
        except Exception as error:  # the server would log its text, which may hold values
            await exchange.fail(error)
        finally:
            exchange.finish(info)
            end_served(served)
            end_traced(traced)


def _begin_trace(runtime: Runtime, scope: Scope, headers: Headers) -> RequestTrace | None:
    if runtime.tracing is None:
        return None
    return runtime.tracing.begin(method=scope["method"], path=scope["path"], traceparent=headers.get("traceparent"))


class _Exchange:
    """One request and the response on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, runtime: Runtime, trace: RequestTrace | None) -> None:
        self._scope, self._receive, self._send, self._runtime, self._trace = scope, receive, send, runtime, trace
        self._info: RequestInfo = scope[_SCOPE_KEY]
        self._path, self._method = scope["path"], scope["method"]  # mounted applications change the scope
        self._status = 0
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Pass a part of the response on, with the request's id; replace refusals that are not in our shape."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            self._status = message["status"]
            if self._status >= 400 and headers.get("content-type") not in _OWN_TYPES:
                await self._replace(self._worded(), headers)
                return
            headers[REQUEST_ID_HEADER] = self._info.id
        await self._send(message)

    def _worded(self) -> ApiError:
        if self._path == "/readyz" and not self._runtime.is_ready:
            return NotReadyError(f"no model is ready: {self._runtime.reason}")
        match self._status:
            case 404:
                return NotFoundError(_NOTHING)
            case 405:
                return MethodNotAllowedError("this path does not answer this method; see the Allow header")
            case 500:
                return InternalError("the service failed unexpectedly; its log says more under this request id")
            case status:
                return OtherHttpError(status)

    async def _replace(self, error: ApiError, original: Headers) -> None:
        kept = {"Allow": original["allow"]} if "allow" in original else {}
        self._status, self._replaced = error.status, True
        told = {**kept, REQUEST_ID_HEADER: self._info.id}
        response = error_response(error, self._info.id, told, connection=HTTPConnection(self._scope))
        await response(self._scope, self._receive, self._send)

    async def refuse(self, error: ApiError) -> None:
        """Answer a request that is not even read, which costs a third of reading, queueing and refusing it."""
        self._runtime.metrics.rejected.labels(error.code).inc()
        await self._replace(error, Headers())

    async def fail(self, error: Exception) -> None:
        """Log an unexpected exception by its places, and answer where nothing has been answered yet."""
        logger.error("request %s: unexpected %s", self._info.id, places(error))
        if not self._status:
            self._status = 500
            await self._replace(self._worded(), Headers())

    def finish(self, info: RequestInfo) -> None:
        """Count the request, and log it where wanted. A request that was cancelled counts as 499."""
        status, route, elapsed_s = self._status or 499, route_label(self._path), info.elapsed_s
        self._runtime.metrics.request_duration.labels(route, str(status)).observe(elapsed_s)
        if self._trace is not None:
            self._trace.end(status)
        if self._runtime.settings.access_log:
            ms = 1000 * elapsed_s
            fields = {"method": self._method, "route": route, "status": status, "ms": round(ms, 2)}
            access_logger.info("%s %s %d %.2f ms %s", self._method, route, status, ms, info.id, extra={FIELDS: fields})
