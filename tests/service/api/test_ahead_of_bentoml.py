"""Which requests pass BentoML's layers by, and when none does."""

import asyncio
from typing import Any

import pytest
from opentelemetry.util.http import ExcludeList
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from service.api.service import AheadOfBentoML


class Layer:
    """A middleware that would trace."""

    def __init__(self, app: Any, excluded_urls: Any = None) -> None:
        self.app = app


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
    [("/predict", "own"), ("/v2/models/a/infer", "own"), ("/livez", "bentoml"), ("/predict/x", "bentoml"), ("/v2x", "bentoml")],
)
def test_our_own_routes_are_answered_at_once(path: str, name: str) -> None:
    """And everything else by BentoML, unknown paths included."""
    quiet = [Middleware(Layer), Middleware(Layer, excluded_urls=ExcludeList([".*"]))]
    assert seen_by(quiet, {"type": "http", "path": path}) == name


def test_start_and_stop_are_bentomls() -> None:
    """It starts what it mounts."""
    assert seen_by([], {"type": "lifespan"}) == "bentoml"


@pytest.mark.parametrize(
    "layer", [Middleware(CORSMiddleware, allow_origins=["*"]), Middleware(Layer, excluded_urls=ExcludeList(["/livez"]))]
)
def test_layers_with_work_to_do_are_not_passed_by(layer: Middleware) -> None:
    """CORS headers, or spans for our routes."""
    assert seen_by([layer], {"type": "http", "path": "/predict"}) == "bentoml"
