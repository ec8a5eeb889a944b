"""Which requests need a key or an access token, and of which scope.

Without I2MOE_API_KEYS and I2MOE_OIDC_ISSUERS everybody may do what needs no telling callers apart; with both either is enough.
Probes, the description of the service and the page itself need none: they tell nothing of anybody. What the page asks for does.
"""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import keys
from service.access.oidc import AccessTokens
from service.access.tokens import TokenError
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


def is_never_open(scope: keys.Scope) -> bool:
    """Whether a service that cannot tell callers apart keeps this from all of them."""
    return scope in _NEVER_OPEN


def authorize(found: keys.Keys | keys.NoKeys | None, headers: Headers, needed: keys.Scope) -> None:
    """Let a request pass where no tokens are asked for; `found` is None for a service without keys.

    Raises `UnauthorizedError`, `ForbiddenError` and `RateLimitedError`.
    """
    if found is None:
        if is_never_open(needed):
            settings = "I2MOE_API_KEYS, I2MOE_OIDC_ISSUERS"
            raise ForbiddenError(f"this needs a key or token of scope {needed}, and this service asks for neither ({settings})")
        return
    if not _has_key(found, headers, needed):
        raise UnauthorizedError(f"expected a key, as Authorization: Bearer KEY or {KEY_HEADER}: KEY, found none that is known")


def _has_key(found: keys.Keys | keys.NoKeys, headers: Headers, needed: keys.Scope) -> bool:
    """Whether a request shows a known key, which then opens `needed`. Raises `ForbiddenError` and `RateLimitedError`."""
    shown = headers.get(KEY_HEADER) or keys.bearer_token(headers.get("authorization", ""))
    entry = None if shown is None else found.find(shown)
    if entry is None:
        return False
    if needed not in entry.scopes:
        raise ForbiddenError(f"expected a key with scope {needed}, found one with {', '.join(sorted(entry.scopes))}")
    if wait_s := found.wait_s(entry):
        raise RateLimitedError("this key is used more often than it may be; try again after the time in Retry-After", wait_s)
    return True


async def authorize_either(
    found: keys.Keys | keys.NoKeys | None, tokens: AccessTokens, headers: Headers, needed: keys.Scope
) -> None:
    """Let a request pass that shows a known key or a token that is trusted. Raises as `authorize`."""
    if found is not None and _has_key(found, headers, needed):
        return
    shown = keys.bearer_token(headers.get("authorization", ""))
    if shown is None:
        raise UnauthorizedError(f"expected an access token or a key, as Authorization: Bearer TOKEN or {KEY_HEADER}: KEY")
    try:
        caller = tokens.known(shown) or await tokens.check(shown)
    except TokenError as error:
        raise UnauthorizedError(str(error), challenge='Bearer error="invalid_token"') from None
    if needed not in caller.scopes:
        wanted = tokens.name_of(needed)
        challenge = f'Bearer error="insufficient_scope", scope="{wanted}"'
        raise ForbiddenError(f"expected a token with scope {wanted}", challenge=challenge)
    if wait_s := tokens.wait_s(caller):
        raise RateLimitedError("this subject calls more often than it may; try again after the time in Retry-After", wait_s)


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
                if needed is not None and runtime.tokens is None:
                    authorize(runtime.keys, Headers(scope=scope), needed)
                elif needed is not None and runtime.tokens is not None:
                    await authorize_either(runtime.keys, runtime.tokens, Headers(scope=scope), needed)
            except ApiError as error:
                runtime.metrics.rejected.labels(error.code).inc()
                request = Request(scope)
                answer = error_response(error, request_info(request).id, connection=request)
        await answer(scope, receive, send)
