"""The application in this process, with its middleware and without BentoML."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.applications import Starlette

from service.access.settings import OidcSettings
from service.api.app import build_app
from service.api.middleware import RequestMiddleware
from service.api.runtime import LOADING, Runtime
from service.api.settings import Settings
from service.clinical.settings import ClinicalSettings
from tests.service.api.error_shape import assert_error


@asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """An asynchronous client of `app`, once its model is loaded or never will be."""
    async with app.router.lifespan_context(app):
        runtime: Runtime = app.state.runtime
        async with asyncio.timeout(20):
            while runtime.reason == LOADING:
                await asyncio.sleep(0.002)
        transport = httpx.ASGITransport(RequestMiddleware(app, runtime_of=lambda: runtime), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


class Client:
    """What tests do with the application; every call waits for its answer."""

    def __init__(self, portal: BlockingPortal, http: httpx.AsyncClient, app: Starlette) -> None:
        self._portal, self._http = portal, http
        self.app = app
        self.runtime: Runtime = app.state.runtime

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        return self._portal.call(partial(self._http.request, method, path, **options))

    def get(self, path: str) -> httpx.Response:
        """GET a path."""
        return self.request("GET", path)

    def post(self, **options: Any) -> httpx.Response:
        """POST /predict."""
        return self.request("POST", "/predict", **options)

    def predict(self, document: Any, **options: Any) -> dict[str, Any]:
        """The answer to a good request."""
        response = self.post(json=document, **options)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def refused(self, status: int, code: str, **request: Any) -> dict[str, Any]:
        """The error that `request` gets at /predict, its shape checked."""
        return assert_error(self.post(**request), status, code)

    def metric(self, series: str) -> float:
        """One series of /metrics, 0 where it does not exist yet."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{series} "):
                return float(line.rpartition(" ")[2])
        return 0.0


@contextmanager
def serving(bundle: Path | None, **settings: Any) -> Iterator[Client]:
    """A client of an application that serves `bundle` with these settings."""
    runtime = Runtime(Settings(bundle=bundle, num_threads=1, **settings))
    with serving_runtime(runtime) as client:
        yield client


@contextmanager
def serving_clinical(bundle: Path, clinical: ClinicalSettings) -> Iterator[Client]:
    """A client of an application that serves `bundle` to hospital systems with these settings."""
    with serving_runtime(Runtime(Settings(bundle=bundle, num_threads=1), clinical=clinical)) as client:
        yield client


@contextmanager
def serving_tokens(bundle: Path | None, oidc: OidcSettings, **settings: Any) -> Iterator[Client]:
    """A client of an application that serves `bundle` to callers with access tokens."""
    with serving_runtime(Runtime(Settings(bundle=bundle, num_threads=1, **settings), oidc=oidc)) as client:
        yield client


@contextmanager
def serving_runtime(runtime: Runtime) -> Iterator[Client]:
    """A client of an application around `runtime`."""
    app = build_app(lambda: runtime)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running(app)) as http:
        yield Client(portal, http, app)
