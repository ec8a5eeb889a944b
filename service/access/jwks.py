"""The public keys of token issuers (JWKS, RFC 7517): from a file, an https URL, or by OpenID Connect discovery.

Requests look keys up; what they cause is bounded. One fetch at a time, in a thread, at most one a minute however many callers
invent key ids. Keys that are there are never waited for: they are read again beside the requests when they have grown old.
Where their source does not answer, the keys from before stay. Knows nothing of tokens.
"""

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

HTTPS = "https://"
DISCOVERY = ""  # in the settings, in place of a file or a URL
_WELL_KNOWN = "/.well-known/openid-configuration"
_AGE_S = 600.0  # after which the keys behind a URL are read again
_FILE_AGE_S = 10.0
_RETRY_S = 60.0  # between attempts that failed, and between reads for key ids that are not known
_FILE_RETRY_S = 1.0
_FETCH_TIMEOUT_S = 3.0  # of each wait for the source
_BODY_S = 10.0  # of all that it says: each byte may come in time and the last never, and a stop waits for who reads
_WAIT_S = 8.0  # of a request for keys
_MAX_BYTES, _PIECE_BYTES = 1_000_000, 65_536
_MIN_RSA_BITS = 2048  # NIST SP 800-131A
_OF_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_OF_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
Fetch = Callable[[str], Any]
logger = logging.getLogger("i2moe.jwks")


class JwksError(ValueError):
    """Keys cannot be read. The text names the place and what is wrong there, never a key."""


@dataclass(frozen=True)
class SigningKey:
    """A public key, and the algorithms that may be used with it."""

    key: "RSAPublicKey | EllipticCurvePublicKey"
    algorithms: frozenset[str]
    jwk: dict[str, Any]


class IssuerKeys:
    """The keys of one issuer."""

    def __init__(
        self, source: str, *, issuer: str, fetch: Fetch | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`source` is a path, an https URL or `DISCOVERY`; nothing is read yet."""
        self.source = source
        self._issuer, self._fetch, self._clock = issuer, fetch or fetch_json, clock
        self._age_s, self._retry_s = (_AGE_S, _RETRY_S) if self.is_remote else (_FILE_AGE_S, _FILE_RETRY_S)
        self._keys: dict[str, SigningKey] = {}
        self._read_at = self._tried_at = float("-inf")
        self._problem: str | None = None
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the keys lie behind a URL."""
        return self.source == DISCOVERY or self.source.startswith(HTTPS)

    @property
    def problem(self) -> str | None:
        """Why the last attempt to read the keys failed."""
        return self._problem

    def held(self, kid: str) -> SigningKey | None:
        """The key by this id, the same object as long as the issuer has it. Reads nothing, but sees to it that old keys are.

        None, too, after a time without requests in which the issuer may have withdrawn it: `key` then looks first. So a key that
        its issuer has withdrawn opens nothing after their age and one attempt, however seldom anybody asks.
        """
        if self._is_due(known=True):
            self.start()
        is_stale = self._problem is None and self._clock() - self._read_at >= self._age_s + self._retry_s
        return None if is_stale else self._keys.get(kid)

    async def key(self, kid: str) -> SigningKey | None:
        """The key by this id; for one that is not known its issuer is asked, where that is not too soon."""
        found = self.held(kid)
        if found is None and self._may_help():
            await asyncio.wait([self.start()], timeout=_WAIT_S)
            found = self._keys.get(kid)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether there is no key at all."""
        return not self._keys

    def _may_help(self) -> bool:
        """Whether to wait for an attempt to read the keys: not for one that hangs, and none is begun beside it."""
        if self._refreshing is not None:
            return self._clock() - self._tried_at < _WAIT_S
        return self._is_due(known=False)

    def _is_due(self, *, known: bool) -> bool:
        now = self._clock()
        return now - self._tried_at >= self._retry_s and (not known or now - self._read_at >= self._age_s)

    def start(self) -> "asyncio.Task[None]":
        """The one attempt to read the keys that is under way, or now begins. Needs a running event loop."""
        if self._refreshing is None:
            self._tried_at = self._clock()
            self._refreshing = asyncio.create_task(self._refresh())
        return self._refreshing

    async def _refresh(self) -> None:
        reading = asyncio.create_task(asyncio.to_thread(self._read))
        try:
            if not (await asyncio.wait([reading], timeout=_WAIT_S))[0]:
                self._fail(f"{self._issuer}: its keys were not read within {_WAIT_S:g} s")
            self._take(await reading)
        except JwksError as error:
            self._fail(str(error))
        finally:
            self._refreshing = None

    def read(self) -> None:
        """Read the keys now, in this thread. Raises `JwksError`."""
        self._tried_at = self._clock()
        try:
            self._take(self._read())
        except JwksError as error:
            self._problem = str(error)
            raise

    def _read(self) -> dict[str, dict[str, Any]]:
        place = self.source or self._issuer
        try:
            if self.source == DISCOVERY:
                document = self._fetch(_jwks_uri(self._issuer, self._fetch))
            else:
                document = self._fetch(self.source) if self.is_remote else json.loads(Path(self.source).read_bytes())
        except JwksError:
            raise
        except Exception as error:  # a file's, a network's and a parser's many kinds of it
            raise JwksError(f"{place}: cannot be read as a JWKS ({type(error).__name__})") from None
        return _listed(document, place)

    def _take(self, listed: dict[str, dict[str, Any]]) -> None:
        """Keep the objects of keys that stay: who was let in by one looks whether it is still held."""
        kept = {kid: key for kid, key in self._keys.items() if key.jwk == listed.get(kid)}
        self._keys = {kid: kept.get(kid) or _signing_key(jwk) for kid, jwk in listed.items()}
        self._read_at, self._problem = self._clock(), None

    def _fail(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("%s; %s", problem, "the keys from before stay" if self._keys else "nobody is let in with its tokens")
        self._problem = problem


def discovery_url(issuer: str) -> str:
    """Where an issuer describes itself (OpenID Connect Discovery 1.0, section 4.1)."""
    return issuer.removesuffix("/") + _WELL_KNOWN


def _jwks_uri(issuer: str, fetch: Fetch) -> str:
    """Where an issuer says that its keys lie (OpenID Connect Discovery 1.0, section 4.3)."""
    document = fetch(discovery_url(issuer))
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise JwksError(f"{issuer}: expected a discovery document of this very issuer, found another")
    uri = document.get("jwks_uri")
    if not isinstance(uri, str) or not uri.startswith(HTTPS):
        raise JwksError(f"{issuer}: expected an https jwks_uri in its discovery document, found none")
    return uri


def _listed(document: Any, place: str) -> dict[str, dict[str, Any]]:
    """The usable keys of a JWKS by id: public, RSA or EC, for signatures."""
    keys = document.get("keys") if isinstance(document, dict) else None
    usable = {key["kid"]: key for key in keys if _is_usable(key)} if isinstance(keys, list) else {}
    if not usable:
        wanted = f"a public RSA key of {_MIN_RSA_BITS} bits or an EC key, with a kid and for signatures"
        raise JwksError(f"{place}: expected at least {wanted}, found none")
    return usable


def _is_usable(jwk: Any) -> bool:
    """A private key lies open to whoever reads the set, so it proves nothing."""
    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str) or "d" in jwk or jwk.get("use", "sig") != "sig":
        return False
    try:
        key, is_to_verify = _signing_key(jwk), "verify" in jwk.get("key_ops", ["verify"])
    except Exception:  # a parser's many kinds of it
        return False
    return (
        is_to_verify and bool(key.algorithms) and getattr(key.key, "key_size", 0) >= (_MIN_RSA_BITS if jwk["kty"] == "RSA" else 0)
    )


def _signing_key(jwk: dict[str, Any]) -> SigningKey:
    """PyJWT is imported when there are issuers."""
    from jwt.algorithms import ECAlgorithm, RSAAlgorithm

    key: Any  # public, since "d" is not among its members
    if jwk.get("kty") == "RSA":
        key, algorithms = RSAAlgorithm.from_jwk(jwk), _OF_RSA
    else:
        key, algorithms = ECAlgorithm.from_jwk(jwk), frozenset({_OF_CURVE[jwk["crv"]]})
    if "alg" in jwk:
        algorithms &= {jwk["alg"]}
    return SigningKey(key, algorithms, jwk)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys are read from where the settings say, and from nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None."""


def fetch_json(url: str) -> Any:
    """The JSON behind an https URL. Raises `JwksError`, and what a network and a parser raise."""
    if not url.startswith(HTTPS):
        raise JwksError("expected an https URL to read keys from")
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(url, timeout=_FETCH_TIMEOUT_S) as response:
        return json.loads(_body(response, url))


def _body(response: HTTPResponse, url: str) -> bytes:
    """All that a response says, by pieces."""
    body, give_up = bytearray(), time.monotonic() + _BODY_S
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > _MAX_BYTES:
            raise JwksError(f"{url}: expected at most {_MAX_BYTES} bytes, found more")
        if time.monotonic() > give_up:
            raise JwksError(f"{url}: expected an end within {_BODY_S:g} s, found none")
    return bytes(body)
