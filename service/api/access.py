"""Routes that say which key or access token they need: a route without an answer to that cannot be made.

Without I2MOE_API_KEYS and I2MOE_OIDC_ISSUERS everybody may do what needs no telling callers apart; with both either is enough.
Probes, the description of the service and the page itself need none: they tell nothing of anybody. What the page asks for does.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import keys
from service.access.oidc import AccessTokens
from service.access.tokens import TokenError
from service.api.errors import ForbiddenError, RateLimitedError, UnauthorizedError
from service.api.runtime import Runtime

KEY_HEADER = "X-API-Key"  # beside Authorization: Bearer
_NEVER_OPEN: frozenset[keys.Scope] = frozenset({"audit", "admin"})  # to nobody where callers cannot be told apart


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


Endpoint = Callable[[Request], Response | Awaitable[Response]] | ASGIApp


class GuardedRoute(Route):
    """A route, and the scope of a key or token that opens it."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        *,
        needs: keys.Scope | None,
        methods: Sequence[str] = ("GET",),
        has_own_tokens: bool = False,
    ) -> None:
        """`needs`: None opens it to all. `has_own_tokens`: where I2MOE_CDS_ISSUERS is set, it checks tokens itself."""
        super().__init__(path, endpoint, methods=[*methods])
        self.needs, self.has_own_tokens = needs, has_own_tokens

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request, whatever its method but a preflight; a refused body is never read."""
        runtime: Runtime = scope["app"].state.runtime
        is_checked_later = self.has_own_tokens and bool(runtime.clinical.issuers)
        if self.needs is not None and not is_checked_later and scope["method"] != "OPTIONS":
            await _authorize(runtime, Headers(scope=scope), self.needs)
        await super().handle(scope, receive, send)


async def _authorize(runtime: Runtime, headers: Headers, needed: keys.Scope) -> None:
    if runtime.tokens is None:
        authorize(runtime.keys, headers, needed)
    else:
        await authorize_either(runtime.keys, runtime.tokens, headers, needed)
