"""Signed JSON web tokens (RFC 7519), checked with PyJWT: what access tokens and the tokens of CDS Hooks have in common.

    header    alg   one of a list, none of which has a shared secret, and one that goes with the key
              kid   which key of the issuer      crit   refused (RFC 7515, section 4.1.11: what is not understood)
    payload   iss   of the settings              aud    this service
              exp   not over                     nbf, iat   not in the future

Everything else is for the caller to check. PyJWT is imported when there are issuers.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.access.jwks import IssuerKeys, SigningKey

_TIMES = ("exp", "nbf", "iat")
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # RFC 7515: base64url without padding


class TokenError(ValueError):
    """A token that is not trusted. The text holds nothing of the token."""


@dataclass(frozen=True)
class Unverified:
    """A token that was read, and of which nothing is believed yet."""

    text: str
    header: dict[str, Any]
    issuer: str
    kid: str


def read_token(text: str, *, algorithms: Sequence[str], max_length: int) -> Unverified:
    """A token's header and issuer. Raises `TokenError`."""
    import jwt

    if len(text) > max_length:
        raise TokenError(f"expected a token of at most {max_length} characters")
    try:
        parts = jwt.decode_complete(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenError("the token cannot be read: expected a signed JSON web token") from None
    header, issuer = parts["header"], parts["payload"].get("iss")
    if header.get("alg") not in algorithms:
        raise TokenError(f"the token's alg is refused: expected one of {', '.join(algorithms)}")
    if "crit" in header or _COMPACT.fullmatch(text) is None:
        raise TokenError("the token cannot be read: expected no crit in its header, and base64url without padding")
    if not isinstance(header.get("kid"), str) or not isinstance(issuer, str):
        raise TokenError("expected a kid in the token's header and an iss among its claims")
    return Unverified(text, header, issuer, header["kid"])


async def key_of(token: Unverified, keys: IssuerKeys) -> SigningKey:
    """The key that a token says it is signed with. Raises `TokenError`."""
    key = await keys.key(token.kid)
    if key is None and keys.is_empty:
        raise TokenError("the keys of the token's issuer cannot be read now")
    if key is None:
        raise TokenError("the token's kid names no key of its issuer")
    if token.header["alg"] not in key.algorithms:
        raise TokenError("the token is not valid: its alg does not go with its key")
    return key


def verified_claims(
    token: Unverified, key: SigningKey, *, audience: Sequence[str], leeway_s: float, required: Sequence[str]
) -> dict[str, Any]:
    """The claims of a token whose signature, issuer, audience and times hold. Raises `TokenError`."""
    import jwt

    try:
        claims: dict[str, Any] = jwt.decode(
            token.text,
            key.key,
            algorithms=[token.header["alg"]],  # which is among the key's, and on the list
            audience=audience,
            issuer=token.issuer,
            leeway=leeway_s,
            options={"require": list(required)},
        )
        if not all(_is_time(claims[name]) for name in _TIMES if name in claims):
            raise TokenError("the token is not valid: expected numbers for its times")
    except TokenError:
        raise
    except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise TokenError(_why(error, required)) from None
    return claims


def _is_time(value: object) -> bool:
    """Seconds as RFC 7519 has them: a number of JSON, which true is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _why(error: Exception, required: Sequence[str]) -> str:
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
            return f"expected the claims {', '.join(required)}, found fewer"
        case jwt.InvalidSignatureError():
            return "the token's signature does not match its issuer's key"
    return "the token is not valid"
