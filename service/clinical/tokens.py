"""Who may call: the signed JSON web tokens of CDS Hooks 2.0 ("Trusting CDS Clients"), checked with PyJWT.

    header    alg   one of ES384, RS384, ES256, RS256; `none` and shared secrets are refused
              kid   which key of the issuer
              jku   where its keys lie: never fetched; refused unless it is the very URL that the settings give
    payload   iss   one of the settings' issuers         aud   this service's base URL, or the URL that was called
              exp   not over, and less than an hour away     iat   not in the future
              jti   never seen before in this process

What it shares with access tokens is `service.access.tokens`'s. Knows no web framework.
"""

import time
from collections import OrderedDict

from service.access.jwks import IssuerKeys
from service.access.keys import bearer_token
from service.access.tokens import TokenError, key_of, read_token, verified_claims
from service.clinical.settings import ClinicalSettings

ALGORITHMS = ("ES384", "RS384", "ES256", "RS256")
_REQUIRED = ("iss", "aud", "exp", "iat", "jti")
_MAX_LIFETIME_S = 3600.0
_MAX_TOKEN_LENGTH = 8192
_MAX_JTI_LENGTH = 256


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


class TokenVerifier:
    """Checks the Authorization header of one call after another."""

    def __init__(self, settings: ClinicalSettings, *, replay: ReplayCache | None = None) -> None:
        """`settings` name at least one issuer and the base URL."""
        assert settings.public_url is not None
        self._base_url = settings.public_url
        self._leeway_s = settings.leeway_s
        self._issuers = {issuer: IssuerKeys(source, issuer=issuer) for issuer, source in settings.issuers.items()}
        self._replay = ReplayCache() if replay is None else replay

    async def check(self, authorization: str, *, path: str) -> str:
        """The issuer that is calling `path`. Raises `TokenError`."""
        text = bearer_token(authorization)
        if text is None:
            raise TokenError("expected a signed token in the header Authorization: Bearer")
        token = read_token(text, algorithms=ALGORITHMS, max_length=_MAX_TOKEN_LENGTH)
        keys = self._issuers.get(token.issuer)
        if keys is None:
            raise TokenError("the token's issuer is not trusted by this service")
        if "jku" in token.header and not (keys.is_remote and token.header["jku"] == keys.source):
            raise TokenError("the token's jku is not the URL that this service trusts for its issuer")
        audience = [self._base_url, f"{self._base_url}{path}"]
        key = await key_of(token, keys)
        claims = verified_claims(token, key, audience=audience, leeway_s=self._leeway_s, required=_REQUIRED)
        if float(claims["exp"]) - time.time() > _MAX_LIFETIME_S:
            raise TokenError(f"the token is valid for too long: expected less than {_MAX_LIFETIME_S:g} s from now")
        if not isinstance(claims["jti"], str) or not 0 < len(claims["jti"]) <= _MAX_JTI_LENGTH:
            raise TokenError(f"expected a jti of 1 to {_MAX_JTI_LENGTH} characters")
        self._replay.add(token.issuer, claims["jti"], expires=float(claims["exp"]) + self._leeway_s, now=time.time())
        return token.issuer
