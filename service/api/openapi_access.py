"""Who may call what, in /docs.json: the ways to show a key or a token, and for each operation the scope that it needs."""

from collections.abc import Sequence

from service.access.jwks import DISCOVERY, discovery_url
from service.access.settings import OidcSettings
from service.api.access import KEY_HEADER, GuardedRoute, is_never_open
from service.api.openapi_parts import Document

_OPERATIONS = frozenset({"get", "post"})
_KEYS: Document = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where the service has keys (docs/security.md)"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": "The same"},
}
_OF_TOKENS = "An access token, where the service trusts an OpenID Connect provider (docs/security.md)"
_SIGNED = "signed"
_OF_SIGNED = "A signed token of a CDS Hooks client, where the service trusts some (docs/clinical.md)"


def with_access(document: Document, routes: Sequence[GuardedRoute], *, oidc: OidcSettings | None, signed: bool) -> Document:
    """The document with its security schemes, and on each operation those that open it with the scope that it needs.

    `signed`: whether clinical callers show tokens of their own. An empty requirement stands where a service without keys and
    tokens asks for nothing.
    """
    tokens = _token_schemes(oidc)
    of_signed = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _OF_SIGNED}
    schemes = {**_KEYS, **tokens, **({_SIGNED: of_signed} if signed else {})}
    prefix = (oidc or OidcSettings.model_construct()).scope_prefix
    by_path = {route.path: route for route in routes}
    paths = {
        path: _guarded(item, _requirements(by_path.get(path), [*tokens], prefix, signed=signed))
        for path, item in document["paths"].items()
    }
    return {**document, "paths": paths, "components": {**document["components"], "securitySchemes": schemes}}


def _token_schemes(oidc: OidcSettings | None) -> Document:
    """Tokens as such, and each provider that describes itself."""
    token = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _OF_TOKENS}
    issuers = [issuer for issuer, source in oidc.issuers.items() if source == DISCOVERY] if oidc is not None else []
    told = {"type": "openIdConnect", "description": _OF_TOKENS}
    return {"token": token, **{f"oidc{i}": {**told, "openIdConnectUrl": discovery_url(one)} for i, one in enumerate(issuers, 1)}}


def _requirements(route: GuardedRoute | None, tokens: list[str], prefix: str, *, signed: bool) -> list[Document]:
    """What opens a route: any one of these. Those that are not ours are probes."""
    if route is None or (scope := route.needs) is None:
        return []
    if signed and route.has_own_tokens:
        return [{_SIGNED: []}]
    open_to_all: list[Document] = [] if is_never_open(scope) else [{}]
    return [*open_to_all, *({name: [scope]} for name in _KEYS), *({name: [prefix + scope]} for name in tokens)]


def _guarded(item: Document, requirements: list[Document]) -> Document:
    return {name: told | {"security": requirements} if name in _OPERATIONS else told for name, told in item.items()}
