"""Who may call: the signed JSON web tokens of CDS Hooks 2.0 ("Trusting CDS Clients"), checked with PyJWT.

    header    alg   one of ES384, RS384, ES256, RS256; `none` and shared secrets are refused
              kid   which key of the issuer
              jku   where its keys lie: never fetched; refused unless it is the very URL that the settings give
    payload   iss   one of the settings' issuers         aud   this service's base URL, or the URL that was called
              exp   not over, and less than an hour away     iat   not in the future
              jti   never seen before in this process

Knows no web framework. PyJWT is imported when issuers are configured.
"""

import asyncio
import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.access.keys import bearer_token
from service.clinical.settings import ClinicalSettings

if TYPE_CHECKING:
    from jwt import PyJWK

ALGORITHMS = ("ES384", "RS384", "ES256", "RS256")
_REQUIRED = ("iss", "aud", "exp", "iat", "jti")
_MAX_LIFETIME_S = 3600.0
_MAX_TOKEN_LENGTH = 8192
_MAX_JTI_LENGTH = 256
_REFETCH_S = 60.0  # an unknown kid must not make this service call the issuer again and again
_KEYS_AGE_S = 3600.0
_FETCH_TIMEOUT_S = 3.0


class TokenError(ValueError):
    """A token that is not trusted. The text holds nothing of the token."""


class ReplayCache:
    """The `jti` of every token that is still valid. When it is full, nobody is let in until some have expired."""

    def __init__(self, *, capacity: int = 100_000) -> None:
        """Room for the tokens of so many calls within a token's lifetime."""
        self._capacity = capacity
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()

    def add(self, issuer: str, jti: str, *, expires: float, now: float) -> None:
        """Note a token. Raises `TokenError` where it was seen before, or there is no room to remember it."""
        if self._seen.get((issuer, jti), 0.0) > now:
            raise TokenError("the token was used before: expected a new jti for every call")
        if len(self._seen) >= self._capacity:
            self._seen = OrderedDict((key, until) for key, until in self._seen.items() if until > now)
        if len(self._seen) >= self._capacity:
            raise TokenError("too many tokens are valid at once; try again when some have expired")
        self._seen[issuer, jti] = expires


class IssuerKeys:
    """The public keys of one issuer, read from a JWKS file or fetched from the https URL of the settings."""

    def __init__(self, source: str) -> None:
        """`source` is a path or an https URL."""
        self.source = source
        self._keys: dict[str, PyJWK] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def is_remote(self) -> bool:
        """Whether the keys lie behind a URL."""
        return self.source.startswith("https://")

    async def key(self, kid: str) -> "PyJWK":
        """The key by this id. Raises `TokenError`."""
        async with self._lock:
            age = time.monotonic() - self._read_at
            if age > _KEYS_AGE_S or (kid not in self._keys and age > _REFETCH_S):
                await self._refresh()
        if kid not in self._keys:
            raise TokenError("the token's kid names no key of its issuer")
        return self._keys[kid]

    async def _refresh(self) -> None:
        self._read_at = time.monotonic()
        try:
            document = await asyncio.to_thread(self._fetch if self.is_remote else self._read)
            self._keys = _usable_keys(document)
        except Exception:  # a file's, a network's and a parser's many kinds of it
            if not self._keys:
                raise TokenError("the keys of the token's issuer cannot be read now") from None

    def _read(self) -> Any:
        return json.loads(Path(self.source).read_text())

    def _fetch(self) -> Any:
        from jwt import PyJWKClient

        return PyJWKClient(self.source, timeout=_FETCH_TIMEOUT_S).fetch_data()


def _usable_keys(document: Any) -> "dict[str, PyJWK]":
    """The asymmetric keys of a JWKS that have an id and are for signatures."""
    from jwt import PyJWKSet

    listed = [key for key in document["keys"] if key.get("kty") in ("EC", "RSA") and key.get("use", "sig") == "sig"]
    return {key.key_id: key for key in PyJWKSet.from_dict({"keys": listed}).keys if key.key_id}


class TokenVerifier:
    """Checks the Authorization header of one call after another."""

    def __init__(self, settings: ClinicalSettings, *, replay: ReplayCache | None = None) -> None:
        """`settings` name at least one issuer and the base URL."""
        assert settings.public_url is not None
        self._base_url = settings.public_url
        self._leeway_s = settings.leeway_s
        self._issuers = {issuer: IssuerKeys(source) for issuer, source in settings.issuers.items()}
        self._replay = ReplayCache() if replay is None else replay

    async def check(self, authorization: str, *, path: str) -> str:
        """The issuer that is calling `path`. Raises `TokenError`."""
        token = bearer_token(authorization)
        if token is None:
            raise TokenError("expected a signed token in the header Authorization: Bearer")
        header, issuer = _unverified(token)
        keys = self._issuers.get(issuer)
        if keys is None:
            raise TokenError("the token's issuer is not trusted by this service")
        if "jku" in header and not (keys.is_remote and header["jku"] == keys.source):
            raise TokenError("the token's jku is not the URL that this service trusts for its issuer")
        claims = self._verified(token, await keys.key(header["kid"]), issuer, path)
        self._replay.add(issuer, claims["jti"], expires=float(claims["exp"]) + self._leeway_s, now=time.time())
        return issuer

    def _verified(self, token: str, key: "PyJWK", issuer: str, path: str) -> dict[str, Any]:
        """The claims of a token whose signature and times hold."""
        import jwt

        audience = [self._base_url, f"{self._base_url}{path}"]
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=list(ALGORITHMS),
                audience=audience,
                issuer=issuer,
                leeway=self._leeway_s,
                options={"require": list(_REQUIRED)},
            )
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError) as error:
            raise TokenError(_why(error)) from None
        if float(claims["exp"]) - time.time() > _MAX_LIFETIME_S:
            raise TokenError(f"the token is valid for too long: expected less than {_MAX_LIFETIME_S:g} s from now")
        if not isinstance(claims["jti"], str) or not 0 < len(claims["jti"]) <= _MAX_JTI_LENGTH:
            raise TokenError(f"expected a jti of 1 to {_MAX_JTI_LENGTH} characters")
        return claims


def _unverified(token: str) -> tuple[dict[str, Any], str]:
    """A token's header and issuer, before anything of it is believed."""
    import jwt

    if len(token) > _MAX_TOKEN_LENGTH:
        raise TokenError(f"expected a token of at most {_MAX_TOKEN_LENGTH} characters")
    try:
        header = jwt.get_unverified_header(token)
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, ValueError, TypeError):
        raise TokenError("the token cannot be read: expected a signed JSON web token") from None
    if header.get("alg") not in ALGORITHMS:
        raise TokenError(f"the token's alg is refused: expected one of {', '.join(ALGORITHMS)}")
    if not isinstance(header.get("kid"), str) or not isinstance(issuer, str):
        raise TokenError("expected a kid in the token's header and an iss among its claims")
    return header, issuer


def _why(error: Exception) -> str:
    """Why PyJWT refused a token, without its own words, which may repeat claims."""
    import jwt

    match error:
        case jwt.ExpiredSignatureError():
            return "the token has expired"
        case jwt.ImmatureSignatureError():
            return "the token was issued in the future"
        case jwt.InvalidAudienceError():
            return "the token's aud is not this service"
        case jwt.MissingRequiredClaimError():
            return f"expected the claims {', '.join(_REQUIRED)}, found fewer"
        case jwt.InvalidSignatureError():
            return "the token's signature does not match its issuer's key"
    return "the token is not valid"
