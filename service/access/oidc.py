"""Access tokens of an OpenID Connect provider, as RFC 9068 profiles them: who is calling, with which scopes, how often.

Beside what `service.access.tokens` checks:

    header    typ   at+jwt, JWT or none at all; jku, x5u, jwk, x5c: refused, since keys come from the settings alone
    payload   typ, nonce, at_hash, c_hash, s_hash   what tells ID tokens from access tokens (`_is_access_token`)
              cnf   refused: bound to a key of the caller (DPoP, mutual TLS), which nobody here could check
              sub, azp, client_id, appid   who is calling: the first of them

Checking a token takes 156 us (RS256), 182 us (ES256) or 604 us (ES384) on a machine of two cores, so tokens that were checked
are remembered by their sha256, which takes 2 us, until they expire or their key is no longer their issuer's.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.access.jwks import Fetch, IssuerKeys, JwksError, SigningKey
from service.access.keys import SCOPES, Allowance, Scope
from service.access.settings import OidcSettings
from service.access.tokens import TokenError, Unverified, key_of, read_token, verified_claims

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_MAX_TOKEN_LENGTH = 16_384
_MAX_SUBJECT_LENGTH = 255  # OpenID Connect Core 1.0, section 2
_SUBJECTS = ("sub", "azp", "client_id", "appid")
_ACCESS_TYPES = ("at+jwt", "application/at+jwt")
_BRINGS_A_KEY = frozenset({"jku", "x5u", "jwk", "x5c"})
_OF_ID_TOKENS = frozenset({"nonce", "at_hash", "c_hash", "s_hash"})
_CAPACITY = 10_000
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True)
class TokenCaller:
    """Who is calling."""

    issuer: str
    subject: str
    scopes: frozenset[Scope]


@dataclass(frozen=True)
class _Verified:
    caller: TokenCaller
    expires: float  # seconds since 1970
    kid: str
    key: SigningKey


class _Recent(Generic[_K, _V]):
    """A memory of so many things, which forgets what was not asked for longest."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[_K, _V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: _K) -> _V | None:
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
        return found

    def put(self, name: _K, value: _V) -> _V:
        self._kept[name] = value
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return value

    def drop(self, name: _K) -> None:
        self._kept.pop(name, None)


class AccessTokens:
    """Checks the tokens of one serving process."""

    def __init__(
        self,
        settings: OidcSettings,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.time,
        capacity: int = _CAPACITY,
    ) -> None:
        """Without issuers nobody is let in. `capacity`: of tokens, and of subjects with a rate, that are remembered."""
        self._settings, self._clock = settings, clock
        self._issuers = {issuer: IssuerKeys(source, issuer=issuer, fetch=fetch) for issuer, source in settings.issuers.items()}
        self._verified: _Recent[bytes, _Verified] = _Recent(capacity)
        self._allowances: _Recent[tuple[str, str], Allowance] = _Recent(capacity)
        self._scopes: dict[str, Scope] = {settings.scope_prefix + scope: scope for scope in SCOPES}

    def read_files(self) -> str | None:
        """Read the keys that lie in files; answers why one cannot be."""
        for keys in self._issuers.values():
            if not keys.is_remote:
                try:
                    keys.read()
                except JwksError as error:
                    return str(error)
        return None

    def prepare(self) -> None:
        """Begin to fetch the keys that lie behind URLs, so that no caller need wait; what fails is logged and tried again."""
        for keys in self._issuers.values():
            if keys.is_remote:
                keys.start()

    def name_of(self, scope: Scope) -> str:
        """How a token names a scope of this service."""
        return self._settings.scope_prefix + scope

    def known(self, text: str) -> TokenCaller | None:
        """Who is calling, where this token was checked before and still holds."""
        digest = _digest(text)
        found = self._verified.get(digest)
        if found is None:
            return None
        if self._clock() < found.expires and self._issuers[found.caller.issuer].held(found.kid) is found.key:
            return found.caller
        self._verified.drop(digest)
        return None

    async def check(self, text: str) -> TokenCaller:
        """Who is calling. Raises `TokenError`."""
        token = read_token(text, algorithms=ALGORITHMS, max_length=_MAX_TOKEN_LENGTH)
        keys = self._issuers.get(token.issuer)
        if keys is None:
            raise TokenError("the token's issuer is not trusted by this service")
        if not _BRINGS_A_KEY.isdisjoint(token.header):
            raise TokenError("the token's header brings a key or says where one lies: expected a kid alone")
        key = await key_of(token, keys)
        claims = self._claims(token, key)
        caller = TokenCaller(token.issuer, _subject(claims), self._scopes_of(claims))
        expires = float(claims["exp"]) + self._settings.leeway_s
        self._verified.put(_digest(text), _Verified(caller, expires, token.kid, key))
        return caller

    def _claims(self, token: Unverified, key: SigningKey) -> dict[str, Any]:
        lifetime_s = self._settings.max_lifetime_s
        required = ("iss", "aud", "exp") if lifetime_s is None else ("iss", "aud", "exp", "iat")
        leeway_s = self._settings.leeway_s
        claims = verified_claims(token, key, audience=self._settings.audience, leeway_s=leeway_s, required=required)
        if lifetime_s is not None and claims["exp"] - claims["iat"] > lifetime_s:
            raise TokenError(f"the token is valid for too long: expected at most {lifetime_s:g} s from its iat to its exp")
        if not _is_access_token(token.header, claims):
            raise TokenError("the token is not an access token")
        if "cnf" in claims:
            raise TokenError("the token is bound to a key of its caller (cnf), which this service cannot check")
        return claims

    def _scopes_of(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        named = {name for claim in self._settings.scope_claim for name in _names(claims, claim)}
        return frozenset(self._scopes[name] for name in named if name in self._scopes)

    def wait_s(self, caller: TokenCaller) -> int:
        """0 where a subject may call now, else after how many seconds."""
        if self._settings.per_second is None:
            return 0
        subject = (caller.issuer, caller.subject)
        allowance = self._allowances.get(subject)
        if allowance is None:
            allowance = self._allowances.put(subject, Allowance(self._settings.per_second, self._settings.burst))
        return allowance.take()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _is_access_token(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    """What its issuer calls an access token, or what nothing marks as another kind of token.

    RFC 9068 says so by the header's typ, Keycloak by a claim typ: Bearer (ID, Refresh, Logout are others). Where neither is
    there, claims that only ID tokens need mark one: nonce and the hashes (OpenID Connect Core 1.0, sections 2 and 3.3.2.11).
    """
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in (*_ACCESS_TYPES, "jwt"):
        return False
    if kind.lower() in _ACCESS_TYPES:
        return True
    if "typ" in claims:
        return bool(claims["typ"] == "Bearer")
    return _OF_ID_TOKENS.isdisjoint(claims)


def _subject(claims: Mapping[str, Any]) -> str:
    """Who calls: a person, or else a program."""
    found = next((claims[name] for name in _SUBJECTS if name in claims), None)
    if not isinstance(found, str) or not 0 < len(found) <= _MAX_SUBJECT_LENGTH:
        listed = ", ".join(_SUBJECTS)
        raise TokenError(f"expected one of {listed} among the token's claims, of 1 to {_MAX_SUBJECT_LENGTH} characters")
    return found


def _names(claims: Mapping[str, Any], claim: str) -> Iterator[str]:
    """The names that a claim holds: a text of names with spaces between, or a list of names."""
    found: Any = claims
    for part in _path(claims, claim):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        yield from found.split(" ")
    elif isinstance(found, list):
        yield from (name for name in found if isinstance(name, str))


def _path(claims: Mapping[str, Any], claim: str) -> Sequence[str]:
    """A claim may have dots in its name, such as a URL; else they lead into objects."""
    return [claim] if claim in claims else claim.split(".")
