"""Which requests need a key, and of which scope. Without I2MOE_API_KEYS everybody may do what needs no telling callers apart.

Probes, the description of the service and the page itself need none: they tell nothing of anybody. What the page asks for does.
"""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import keys
from service.api.errors import ApiError, ForbiddenError, RateLimitedError, UnauthorizedError, error_response
from service.api.metrics import (
    CDS_ROUTES,
    EVALUATE_ROUTE,
    INFER_ROUTE,
    PREDICTIONS_ROUTE,
    PROTOCOL_ROUTE,
    RELOAD_ROUTE,
    route_label,
)
from service.api.middleware import request_info
from service.api.runtime import Runtime

KEY_HEADER = "X-API-Key"  # beside Authorization: Bearer
_SCOPES: dict[str, keys.Scope] = {
    "/predict": "predict",
    INFER_ROUTE: "predict",
    PROTOCOL_ROUTE: "explain",
    "/model": "explain",
    "/model-card": "explain",
    "/explanations": "explain",
    "/metrics": "metrics",
    PREDICTIONS_ROUTE: "audit",
    RELOAD_ROUTE: "admin",
    "/outcomes": "outcomes",
    EVALUATE_ROUTE: "predict",
    **dict.fromkeys(CDS_ROUTES, "predict"),
}
_OF_TOKENS = frozenset({EVALUATE_ROUTE, *CDS_ROUTES})  # these check tokens of their own where I2MOE_CDS_ISSUERS says whose
_NEVER_OPEN: frozenset[keys.Scope] = frozenset({"audit", "admin"})  # to nobody where callers cannot be told apart
_OPEN_PROTOCOL_PATHS = frozenset({"/v2", "/v2/health/live", "/v2/health/ready"})


def scope_of(path: str, *, tokens: bool) -> keys.Scope | None:
    """The scope that a path needs; None for paths that are open to all, or with `tokens` check those of clinical callers."""
    label = route_label(path)
    return None if path in _OPEN_PROTOCOL_PATHS or (tokens and label in _OF_TOKENS) else _SCOPES.get(label)


def authorize(found: keys.Keys | keys.NoKeys | None, headers: Headers, needed: keys.Scope) -> None:
    """Let a request pass; `found` is None for a service without keys.

    Raises `UnauthorizedError`, `ForbiddenError` and `RateLimitedError`.
    """
    if found is None:
        if needed in _NEVER_OPEN:
            raise ForbiddenError(f"this needs a key of scope {needed}, and this service has no keys (I2MOE_API_KEYS)")
        return
    token = headers.get(KEY_HEADER) or keys.bearer_token(headers.get("authorization", ""))
    entry = None if token is None else found.find(token)
    if entry is None:
        raise UnauthorizedError(f"expected a key, as Authorization: Bearer KEY or {KEY_HEADER}: KEY, found none that is known")
    if needed not in entry.scopes:
        raise ForbiddenError(f"expected a key with scope {needed}, found one with {', '.join(sorted(entry.scopes))}")
    if wait_s := found.wait_s(entry):
        raise RateLimitedError("this key is used more often than it may be; try again after the time in Retry-After", wait_s)


class AccessMiddleware:
    """ASGI middleware around our own routes."""

    def __init__(self, app: ASGIApp) -> None:
        """Guard `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request; a refused body is never read."""
        answer = self._app
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            runtime: Runtime = scope["app"].state.runtime
            needed = scope_of(scope["path"], tokens=bool(runtime.clinical.issuers))
            try:
                if needed is not None:
                    authorize(runtime.keys, Headers(scope=scope), needed)
            except ApiError as error:
                runtime.metrics.rejected.labels(error.code).inc()
                request = Request(scope)
                answer = error_response(error, request_info(request).id, connection=request)
        await answer(scope, receive, send)
