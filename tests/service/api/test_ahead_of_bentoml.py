"""Which requests pass BentoML's layers by, and when none does."""

import asyncio
from typing import Any

import pytest
from opentelemetry.util.http import ExcludeList
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from service.api.service import _BENTOML_TIMEOUT_S, AheadOfBentoML, I2MoEService


class OpenTelemetryMiddleware:
    """A layer by the name of BentoML's, and with its options."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app


class TimeoutMiddleware(OpenTelemetryMiddleware):
    pass


class ContextMiddleware(OpenTelemetryMiddleware):
    pass


class AccessLogMiddleware(OpenTelemetryMiddleware):
    pass


IDLE = [
    Middleware(OpenTelemetryMiddleware, excluded_urls=ExcludeList([".*"])),
    Middleware(TimeoutMiddleware, timeout=_BENTOML_TIMEOUT_S),
    Middleware(ContextMiddleware),
]


def seen_by(layers: list[Middleware], scope: dict[str, Any]) -> str:
    """Which of two applications gets a request."""
    seen: list[str] = []

    class App(Starlette):
        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(**options)
            self.name = name

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(self.name)

    own = App("own", routes=[Route("/predict", lambda _: None)])
    front = AheadOfBentoML(own, App("bentoml", middleware=layers))
    asyncio.run(front(scope, None, None))  # type: ignore[arg-type]
    (name,) = seen
    return name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/predict", "own"),
        ("/v2/models/a/infer", "own"),
        ("/cds-services/a", "own"),
        ("/fhir/x", "own"),
        ("/livez", "bentoml"),
        ("/predict/x", "bentoml"),
        ("/v2x", "bentoml"),
    ],
)
def test_our_own_routes_are_answered_at_once(path: str, name: str) -> None:
    """And everything else by BentoML, unknown paths included."""
    assert seen_by(IDLE, {"type": "http", "path": path}) == name


def test_what_bentoml_itself_puts_around_us_is_idle() -> None:
    """With the configuration of the decorator alone; or every request would take the long way."""
    app = I2MoEService.to_asgi()
    assert app._app._passes


def test_start_and_stop_are_bentomls() -> None:
    """It starts what it mounts."""
    assert seen_by([], {"type": "lifespan"}) == "bentoml"


@pytest.mark.parametrize(
    "layer",
    [
        Middleware(CORSMiddleware, allow_origins=["*"]),
        Middleware(OpenTelemetryMiddleware, excluded_urls=ExcludeList(["/livez"])),
        Middleware(TimeoutMiddleware, timeout=1.0),
        Middleware(AccessLogMiddleware),
    ],
    ids=lambda layer: layer.cls.__name__,
)
def test_layers_with_work_to_do_are_not_passed_by(layer: Middleware) -> None:
    """CORS headers, spans for our routes, a shorter deadline, a log; whatever is not known to be idle."""
    assert seen_by([*IDLE, layer], {"type": "http", "path": "/predict"}) == "bentoml"
