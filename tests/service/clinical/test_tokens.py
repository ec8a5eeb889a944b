"""Who may call: tokens signed with keys made here, every way to forge one, and an issuer whose keys lie behind a URL."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pydantic import ValidationError

from service.access.jwks import IssuerKeys
from service.access.tokens import TokenError
from service.clinical.settings import ClinicalSettings
from service.clinical.tokens import ReplayCache, TokenVerifier
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving, serving_clinical
from tests.service.clinical.clinical_bundle import hook_call, whole_prefetch

ISSUER, BASE = "https://ehr.example", "https://risk.example"
VIEW = "/cds-services/tiny-patient-view"
KEYS: dict[str, Any] = {
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS384": rsa.generate_private_key(public_exponent=65537, key_size=2048),
}
KEYS["RS256"] = KEYS["RS384"]


def jwks(**changes: Any) -> dict[str, Any]:
    """The public keys as an issuer publishes them; `kid` is the algorithm."""
    listed = []
    for name, key in KEYS.items():
        algorithm = ECAlgorithm if name.startswith("ES") else RSAAlgorithm
        listed.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, **changes})
    return {"keys": listed}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The issuer's JWKS file."""
    path = tmp_path_factory.mktemp("keys") / "ehr.json"
    secret = {"kty": "oct", "kid": "secret", "k": base64.urlsafe_b64encode(b"x" * 32).decode()}
    path.write_text(json.dumps({"keys": [*jwks()["keys"], secret]}))
    return path


@pytest.fixture(scope="module")
def guarded(clinical_path: Path, keys_file: Path) -> Iterator[Client]:
    """A client of a service that trusts one issuer."""
    settings = ClinicalSettings(issuers={ISSUER: str(keys_file)}, public_url=BASE, origins=("https://ehr.example",))
    with serving_clinical(clinical_path, settings) as client:
        yield client


def token(algorithm: str = "ES384", *, header: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
    """A good token, but for what is changed; a claim of None is left out."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": f"{BASE}{VIEW}", "exp": now + 300, "iat": now, "jti": str(uuid.uuid4()), **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, key or KEYS[algorithm], algorithm, headers={"kid": algorithm, **(header or {})})


def call(client: Client, bearer: str | None, method: str = "POST", path: str = VIEW) -> Any:
    """A call with this token."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    body = {"json": hook_call(whole_prefetch())} if method == "POST" else {}
    return client.request(method, path, headers=headers, **body)


def refused(client: Client, bearer: str | None) -> str:
    """Why this token is not trusted."""
    response = call(client, bearer)
    assert response.headers["www-authenticate"].startswith("Bearer")
    return str(assert_error(response, 401, "UNAUTHORIZED")["error"])


@pytest.mark.parametrize("algorithm", [*KEYS])
def test_a_token_of_a_trusted_issuer_is_let_in(guarded: Client, algorithm: str) -> None:
    """Signed with any of the four algorithms, for the URL that is called or for the service."""
    assert call(guarded, token(algorithm)).status_code == 200
    assert call(guarded, token(algorithm, aud=[BASE, "https://other.example"], tenant="north")).status_code == 200
    assert call(guarded, token(algorithm, aud=f"{BASE}/cds-services"), "GET", "/cds-services").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/cds-services"), ("POST", VIEW), ("POST", f"{VIEW}/feedback"), ("POST", "/fhir/RiskAssessment/$evaluate")],
)
def test_without_a_token_nothing_is_answered(guarded: Client, method: str, path: str) -> None:
    """Discovery and feedback neither; in FHIR where FHIR is spoken."""
    response = call(guarded, None, method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    if path.startswith("/fhir"):
        assert response.json()["issue"][0]["code"] == "login"


def test_the_rest_of_the_service_needs_no_token(guarded: Client) -> None:
    """/predict and probes are for a network that is trusted, as before."""
    assert guarded.post(json={"labs": {"crea": 1}}).status_code == 200
    assert guarded.get("/docs.json").status_code == 200


def test_a_preflight_needs_no_token(guarded: Client) -> None:
    """Browsers send none; the refusal that follows can be read by the page."""
    headers = {"Origin": ISSUER, "Access-Control-Request-Method": "POST"}
    assert guarded.request("OPTIONS", VIEW, headers=headers).status_code == 200
    assert guarded.request("POST", VIEW, json={}, headers={"Origin": ISSUER}).headers["access-control-allow-origin"] == ISSUER


SECRET = b"x" * 64


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example"}, "issuer is not trusted"),
        ({"iss": None}, "an iss among its claims"),
        ({"aud": "https://other.example"}, "aud is not this service"),
        ({"aud": f"{BASE}/cds-services/other"}, "aud is not this service"),
        ({"aud": None}, "found fewer"),
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "found fewer"),
        ({"exp": 2**40}, "valid for too long"),
        ({"exp": "soon"}, "not valid"),
        ({"iat": 2**40}, "issued in the future"),
        ({"iat": None}, "found fewer"),
        ({"jti": None}, "found fewer"),
        ({"jti": ""}, "jti of 1 to 256"),
        ({"jti": "x" * 300}, "jti of 1 to 256"),
        ({"header": {"kid": "nobody"}}, "names no key"),
        ({"header": {"kid": "secret"}}, "names no key"),
        ({"header": {"kid": "ES256"}}, "signature does not match|not valid"),
        ({"header": {"jku": "https://evil.example/keys"}}, "jku is not the URL"),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, "signature does not match"),
    ],
)
def test_a_token_that_says_something_wrong_is_refused(guarded: Client, changes: dict[str, Any], reason: str) -> None:
    """With a reason that repeats nothing of it."""
    told = refused(guarded, token(**changes))
    assert any(one in told for one in reason.split("|")), told
    assert "evil" not in told


def encoded(part: dict[str, Any]) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def forged(header: dict[str, Any], secret: bytes | None, **claims: Any) -> str:
    """A token made by hand: unsigned, or with a shared secret."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": BASE, "exp": now + 60, "iat": now, "jti": str(uuid.uuid4()), **claims}
    signed = f"{encoded(header)}.{encoded(payload)}"
    if secret is None:
        return f"{signed}."
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def test_unsigned_tokens_and_shared_secrets_are_refused(guarded: Client, keys_file: Path) -> None:
    """Also the old trick of signing with the public key as the secret, and whatever is no token."""
    pem = KEYS["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert "alg is refused" in refused(guarded, forged({"alg": "none", "kid": "ES384"}, None))
    assert "alg is refused" in refused(guarded, forged({"alg": "HS256", "kid": "RS256"}, pem))
    assert "alg is refused" in refused(guarded, forged({"alg": "HS256", "kid": "secret"}, b"x" * 32))
    for text in ("", "a", "a.b.c", "....", "x" * 10_000, token()[:-8] + "AAAAAAAA", forged({"alg": "ES384", "kid": 5}, None)):
        refused(guarded, text)
    infinite = forged({"alg": "ES384", "kid": "ES384"}, SECRET, exp=float("inf"))
    refused(guarded, infinite)
    assert guarded.request("GET", "/cds-services", headers={"Authorization": "Basic eA=="}).status_code == 401


def test_a_signed_expiry_that_is_no_number_is_refused(guarded: Client) -> None:
    """However it is spelled; nothing of it makes the service fail."""
    for expiry in ("99999999999", 1e400, [1], {"a": 1}, True):
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": BASE, "exp": expiry, "iat": now, "jti": str(uuid.uuid4())}
        signed = jwt.PyJWS().encode(json.dumps(claims).encode(), KEYS["ES384"], "ES384", headers={"kid": "ES384"})
        refused(guarded, signed)


def test_a_token_is_good_once(guarded: Client) -> None:
    """The second call with the same jti is a replay; a call that was refused for another reason uses nothing up."""
    once = token(jti="once")
    assert call(guarded, once).status_code == 200
    assert "used before" in refused(guarded, once)
    assert "expired" in refused(guarded, token(jti="twice", exp=1))
    assert call(guarded, token(jti="twice")).status_code == 200


def test_the_memory_of_tokens_is_bounded_and_forgets_what_expired() -> None:
    """Full of valid tokens it lets nobody in, or a replay could slip through."""
    cache = ReplayCache(capacity=2)
    cache.add("i", "a", expires=10, now=0)
    cache.add("i", "b", expires=20, now=0)
    with pytest.raises(TokenError, match="too many"):
        cache.add("i", "c", expires=30, now=5)
    cache.add("i", "c", expires=30, now=15)
    cache.add("j", "b", expires=30, now=25)
    with pytest.raises(TokenError, match="used before"):
        cache.add("j", "b", expires=40, now=26)
    cache.add("j", "b", expires=50, now=31)


def remote_keys(*answers: Any) -> IssuerKeys:
    """Keys behind a URL that is not asked over a network: `answers` stand in for the issuer's."""
    left = list(answers)

    def fetch(url: str) -> Any:
        assert url == "https://ehr.example/jwks.json"
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return IssuerKeys("https://ehr.example/jwks.json", issuer=ISSUER, fetch=fetch)


def verifier(keys: IssuerKeys) -> TokenVerifier:
    """A verifier that trusts the issuer with these keys."""
    made = TokenVerifier(ClinicalSettings(issuers={ISSUER: "https://ehr.example/jwks.json"}, public_url=BASE))
    made._issuers[ISSUER] = keys
    return made


def test_keys_behind_a_url_are_fetched_once_and_not_for_every_unknown_kid() -> None:
    """A caller who invents kids cannot make the service call the issuer again and again."""
    trusting = verifier(remote_keys(jwks()))  # a second fetch would fail

    async def scenario() -> None:
        for good in ("ES384", "ES256"):
            assert await trusting.check(f"Bearer {token(good)}", path=VIEW) == ISSUER
        for _ in range(5):
            with pytest.raises(TokenError, match="names no key"):
                await trusting.check(f"Bearer {token(header={'kid': 'invented'})}", path=VIEW)

    asyncio.run(scenario())


def test_an_issuer_that_does_not_answer_lets_nobody_in() -> None:
    """Whatever goes wrong there is told as one reason."""
    for broken in (OSError("no route"), {"keys": []}, {"no": "keys"}, [], "x", jwks(use="enc")):
        with pytest.raises(TokenError, match="cannot be read now"):
            asyncio.run(verifier(remote_keys(broken)).check(f"Bearer {token()}", path=VIEW))


def test_a_listed_jku_is_accepted() -> None:
    """The jku that is the configured URL itself says nothing new."""
    good = token(header={"jku": "https://ehr.example/jwks.json"})
    assert asyncio.run(verifier(remote_keys(jwks())).check(f"Bearer {good}", path=VIEW)) == ISSUER


def test_without_issuers_everybody_may_call_and_the_log_says_so(
    clinical_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off by default, never silently."""
    monkeypatch.setattr(logging.getLogger("i2moe"), "propagate", True)
    with caplog.at_level(logging.WARNING), serving(clinical_path) as client:
        assert call(client, None).status_code == 200
    assert "I2MOE_CDS_ISSUERS is not set" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issuers": '{"a": "/nowhere"}', "public_url": BASE}, "expected an https URL or a JWKS file"),
        ({"issuers": '{"a": "http://ehr.example/keys"}', "public_url": BASE}, "expected an https URL or a JWKS file"),
        ({"issuers": "a=b", "public_url": BASE}, "expected a JSON object"),
        ({"issuers": '{"a": "https://ehr.example/keys"}'}, "ISSUERS needs PUBLIC_URL"),
        ({"public_url": "risk.example"}, "expected an http or https URL"),
        ({"public_url": f"{BASE}/"}, "without a slash"),
        ({"origins": "https://a.example/path"}, "expected origins"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, str], reason: str) -> None:
    """In a sentence; a service with half a lock does not start."""
    with pytest.raises(ValidationError, match=reason):
        ClinicalSettings(**changes)  # type: ignore[arg-type]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, keys_file: Path) -> None:
    """Lists by commas, issuers as JSON."""
    monkeypatch.setenv("I2MOE_CDS_ORIGINS", "https://a.example, http://localhost:8080")
    monkeypatch.setenv("I2MOE_CDS_ISSUERS", json.dumps({ISSUER: str(keys_file)}))
    monkeypatch.setenv("I2MOE_CDS_PUBLIC_URL", BASE)
    settings = ClinicalSettings()
    assert settings.origins == ("https://a.example", "http://localhost:8080")
    assert settings.issuers == {ISSUER: str(keys_file)}
