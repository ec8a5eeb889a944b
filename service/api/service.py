"""The BentoML service: the only module that knows BentoML. Its routes are `service.api.app`'s.

BentoML's own batching is not used: one bad sample fails its whole batch, its queue is unbounded, and calls between
services lose requests (BentoML issue 5540). Its metrics are off: they grow by a series with every unknown path.
"""

import sys
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.app import build_app
from service.api.joined_writes import join_writes
from service.api.logs import configure_server_logs
from service.api.middleware import RequestMiddleware
from service.api.runtime import Runtime
from service.api.settings import read_settings
from service.bundle.machine import leave_garbage

# BentoML wants these two before the service starts; everything else is read when it does.
_settings, _ = read_settings()
_BENTOML_TIMEOUT_S = _settings.timeout_s + 5.0  # our own deadline answers first
_SWITCH_INTERVAL_S = 0.0002
_GARBAGE_THRESHOLDS = (100_000, 20, 100)
_OWN_PREFIXES = ("/v2/", "/cds-services/", "/fhir/")

if _settings.log_format == "json":
    configure_server_logs()  # of the process that starts the workers, too, which does nothing else with this module

_app = build_app(Runtime.from_environment)


def _runtime() -> Runtime:
    runtime: Runtime = _app.state.runtime
    return runtime


class AheadOfBentoML:
    """Our own routes at once, everything else by way of BentoML's layers: a task, a timer and two routers per request.

    Those cost a fifth of a request's time. Where BENTOML_CONFIG gives them something to do, such as CORS headers, traces, an
    access log or a limit of concurrency, nothing passes them.
    """

    def __init__(self, own: Starlette, bentoml_app: Starlette) -> None:
        self._own, self._bentoml = own, bentoml_app
        self._passes = not _has_work(bentoml_app)
        self._paths = frozenset(route.path for route in own.routes)  # type: ignore[attr-defined]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or start and stop with the server, which is BentoML's part."""
        ahead = self._passes and scope["type"] == "http" and self._is_own(scope["path"])
        await (self._own if ahead else self._bentoml)(scope, receive, send)

    def _is_own(self, path: str) -> bool:
        return path in self._paths or path.startswith(_OWN_PREFIXES)


def _has_work(bentoml_app: Starlette) -> bool:
    """Whether BentoML is to do more than keep a context and a deadline that is longer than ours."""
    return any(not _is_idle(layer) for layer in bentoml_app.user_middleware)


def _is_idle(layer: Middleware) -> bool:
    options: dict[str, Any] = dict(layer.kwargs)
    match getattr(layer.cls, "__name__", ""):
        case "ContextMiddleware":  # for code of BentoML's own, of which our routes have none
            return True
        case "TimeoutMiddleware":
            return bool(options["timeout"] >= _BENTOML_TIMEOUT_S)
        case "OpenTelemetryMiddleware":
            return bool(options["excluded_urls"].url_disabled("http://any/predict"))
    return False


class _Service(bentoml.Service[Any]):  # type: ignore[misc]  # BentoML's decorator hides its class's type
    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        join_writes()
        return RequestMiddleware(AheadOfBentoML(_app, super().to_asgi(is_main)), runtime_of=_runtime)


@bentoml.service(
    service_class=_Service,
    workers=_settings.workers,
    traffic={"timeout": _BENTOML_TIMEOUT_S},
    metrics={"enabled": False},
    tracing={"excluded_urls": ".*"},  # a third of a request's time; who exports traces sets this in BENTOML_CONFIG
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_app, path="/")
class I2MoEService:
    """Serves one bundle: predictions, a page, the model and its card, CDS Hooks, the Open Inference Protocol, metrics, health."""

    def __init__(self) -> None:
        """Collect garbage seldom, and let the inference thread have its turn soon.

        With Python's 5 ms it waited that long whenever a batch was done.
        """
        leave_garbage(*_GARBAGE_THRESHOLDS)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)

    async def __is_ready__(self) -> bool:
        """Whether /readyz answers 200; the middleware adds the reason where it does not."""
        return _runtime().is_ready
