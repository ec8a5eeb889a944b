"""The routes, as a Starlette application that runs under any ASGI server with `RequestMiddleware` around it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from service.api.access import GuardedRoute
from service.api.audit_routes import audit_routes
from service.api.errors import ApiError, ReloadFailedError, error_response
from service.api.inference_protocol import protocol_routes
from service.api.middleware import request_info
from service.api.model_card import show_model_card
from service.api.models import ModelResponse
from service.api.openapi import API_VERSION, build_openapi
from service.api.openapi_access import with_access
from service.api.outcome_routes import outcome_routes
from service.api.page import page_routes
from service.api.predict import predict
from service.api.route_labels import RELOAD_ROUTE
from service.api.runtime import Runtime
from service.api.scoring import ClientLeftError, runtime_of
from service.clinical.openapi import with_clinical
from service.clinical.routes import Gate, clinical_routes


def build_app(start: Callable[[], Runtime]) -> Starlette:
    """The application around the runtime that `start` makes when the server starts.

    The model is loaded beside the server, so /livez answers at once and /readyz when the model does.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        runtime = app.state.runtime = start()
        app.state.gate = Gate(runtime.clinical, is_guarded=runtime.keys is not None or runtime.tokens is not None)
        opening = asyncio.create_task(runtime.open())
        yield
        await opening
        await runtime.close()

    handlers: dict[type[Exception], ExceptionHandler] = {ApiError: _refuse, ClientLeftError: _part}
    return Starlette(routes=all_routes(), lifespan=lifespan, exception_handlers=handlers)


def all_routes() -> list[GuardedRoute]:
    """Every route but the probes, which are BentoML's and open."""
    return [
        GuardedRoute("/predict", predict, methods=["POST"], needs="predict"),
        GuardedRoute("/model", show_model, needs="explain"),
        GuardedRoute("/model-card", show_model_card, needs="explain"),
        GuardedRoute("/explanations", show_explanations, needs="explain"),
        GuardedRoute("/metrics", show_metrics, needs="metrics"),
        GuardedRoute(RELOAD_ROUTE, reload, methods=["POST"], needs="admin"),
        GuardedRoute("/docs.json", show_openapi, needs=None),
        *page_routes(),
        *protocol_routes(API_VERSION),
        *audit_routes(),
        *outcome_routes(),
        *clinical_routes(),
    ]


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    runtime_of(request).metrics.rejected.labels(error.code).inc()
    return error_response(error, request_info(request).id, connection=request)


async def _part(request: Request, error: Exception) -> Response:
    """Of a client that left: counted by nginx's status for it, and read by nobody."""
    del request, error
    return Response(status_code=499, media_type="application/json")


def _json(document: dict[str, Any]) -> Response:
    return Response(to_json(document), media_type="application/json")


def show_model(request: Request) -> Response:
    """GET /model: what is served, and what scores it silently."""
    runtime = runtime_of(request)
    model = runtime.require_model()
    shown = set(ModelResponse.model_fields) - {"model", "shadow"}
    return _json({"model": model.info, **model.manifest.model_dump(mode="json", include=shown), "shadow": _shadow(runtime)})


def _shadow(runtime: Runtime) -> dict[str, Any] | None:
    return None if runtime.shadow is None else runtime.shadow.status


def show_explanations(request: Request) -> Response:
    """GET /explanations: the dataset-level interpretation."""
    model = runtime_of(request).require_model()
    told = model.manifest.model_dump(mode="json", include={"explanation", "explanation_validity"})
    return _json(
        {
            "model": model.info,
            "explanation": told["explanation"],
            "validity": told["explanation_validity"],
            "reference": model.bundle.reference(),
        }
    )


def show_metrics(request: Request) -> Response:
    """GET /metrics: the exposition text. A plain function, so Starlette runs it in a thread: it reads files."""
    return Response(runtime_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def reload(request: Request) -> Response:
    """POST /admin/reload: serve the bundle that is there now. Each serving process does this for itself.

    A shadow follows, too; what becomes of it is told and is no reason to fail.
    """
    runtime = runtime_of(request)
    followed = await runtime.follow()
    if runtime.shadow is not None:
        await runtime.shadow.follow(limit_s=runtime.settings.timeout_s)
    if followed.problem is not None:
        raise ReloadFailedError(followed.problem)
    return _json({"changed": followed.changed, "model": runtime.require_model().info, "shadow": _shadow(runtime)})


def show_openapi(request: Request) -> Response:
    """GET /docs.json: the OpenAPI document, with the model's own features once a model is ready."""
    runtime = runtime_of(request)
    manifest = runtime.model.manifest if runtime.model else None
    document = with_clinical(build_openapi(manifest), manifest)
    routes = [route for route in request.app.routes if isinstance(route, GuardedRoute)]
    return _json(with_access(document, routes, oidc=runtime.oidc, signed=bool(runtime.clinical.issuers)))
