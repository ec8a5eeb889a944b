"""Access tokens: which are trusted, every way in which one is not, what they open, how often, and how long they are known."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.access.keys import SCOPES
from service.access.oidc import ALGORITHMS, AccessTokens, TokenCaller
from service.access.settings import OidcSettings
from service.access.tokens import TokenError
from service.api.settings import read_oidc_settings, unknown_variables
from tests.service.access.issuer import AUDIENCE, ISSUER, SUBJECT, jwk, jwks, jwks_file, private_key, token

KEYS = (*ALGORITHMS, "RS256-other")
URL = "https://idp.example/keys"
LATER = 4_000_000_000  # in the year 2096
WORD = "ZQX7731"  # stands for whatever a token holds


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The issuer's keys in a file."""
    return jwks_file(tmp_path_factory.mktemp("issuer"), *KEYS)


def trusting(source: object, **changes: Any) -> AccessTokens:
    """What trusts the issuer, with changed settings."""
    told = OidcSettings(issuers={ISSUER: str(source)}, audience=changes.pop("audience", (AUDIENCE,)), **changes)
    return AccessTokens(told)


def caller_of(source: object, text: str, **changes: Any) -> TokenCaller:
    """Who is let in by a token."""
    return asyncio.run(trusting(source, **changes).check(text))


@pytest.mark.parametrize("name", KEYS)
def test_a_good_token_tells_who_calls(source: Path, name: str) -> None:
    """Signed by any of nine algorithms."""
    caller = caller_of(source, token(name))
    assert (caller.issuer, caller.subject, caller.scopes) == (ISSUER, SUBJECT, {"predict"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://zqx7731.example"}, "issuer is not trusted"),
        ({"iss": f"{ISSUER}/"}, "issuer is not trusted"),
        ({"iss": ISSUER.upper()}, "issuer is not trusted"),
        ({"iss": None}, "an iss among its claims"),
        ({"iss": [ISSUER]}, "an iss among its claims"),
        ({"aud": "https://zqx7731.example"}, "aud is not this service"),
        ({"aud": f"{AUDIENCE}/"}, "aud is not this service"),
        ({"aud": [5, AUDIENCE]}, "aud is not this service"),
        ({"aud": {AUDIENCE: 1}}, "aud is not this service"),
        ({"aud": None}, "found fewer"),
        ({"aud": []}, "found fewer"),
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "found fewer"),
        ({"exp": WORD}, "not valid"),
        ({"exp": "99999999999"}, "expected numbers for its times"),
        ({"exp": True}, "has expired"),
        ({"exp": [2**40]}, "not valid"),
        ({"exp": float("inf")}, "not valid"),
        ({"exp": float("nan")}, "not valid"),
        ({"nbf": 2**40}, "in the future"),
        ({"nbf": "1"}, "expected numbers for its times"),
        ({"nbf": WORD}, "not valid"),
        ({"iat": 2**40}, "in the future"),
        ({"iat": True}, "expected numbers for its times"),
        ({"sub": None}, "expected one of sub, azp, client_id, appid"),
        ({"sub": ""}, "of 1 to 255 characters"),
        ({"sub": "x" * 256}, "of 1 to 255 characters"),
        ({"sub": 5}, "not valid"),
        ({"sub": None, "azp": 5}, "of 1 to 255 characters"),
        ({"cnf": {"jkt": WORD}}, "bound to a key of its caller"),
        ({"header": {"kid": None}}, "expected a kid"),
        ({"header": {"kid": WORD}}, "names no key"),
        ({"header": {"kid": "RS256-other"}}, "signature does not match"),
        ({"header": {"kid": "ES256"}}, "alg does not go with its key"),
        ({"name": "ES256", "header": {"kid": "RS256"}}, "alg does not go with its key"),
        ({"name": "ES256", "header": {"kid": "ES384"}}, "alg does not go with its key"),
        ({"key": private_key("RS256-unknown")}, "signature does not match"),
        ({"header": {"jku": "https://zqx7731.example/keys"}}, "brings a key or says where"),
        ({"header": {"x5u": "https://zqx7731.example/keys"}}, "brings a key or says where"),
        ({"header": {"jwk": {"kty": "RSA"}}}, "brings a key or says where"),
        ({"header": {"x5c": [WORD]}}, "brings a key or says where"),
        ({"header": {"typ": "logout+jwt"}}, "not an access token"),
        ({"header": {"typ": "dpop+jwt"}}, "not an access token"),
        ({"header": {"typ": "id+jwt"}}, "not an access token"),
        ({"header": {"typ": "JWT"}, "typ": "ID"}, "not an access token"),
        ({"header": {"typ": "JWT"}, "typ": "Refresh"}, "not an access token"),
        ({"header": {"typ": "JWT"}, "nonce": WORD}, "not an access token"),
        ({"header": {"typ": "JWT"}, "at_hash": WORD}, "not an access token"),
        ({"header": {"typ": None}, "c_hash": WORD}, "not an access token"),
    ],
)
def test_a_token_that_says_something_wrong_is_refused(source: Path, changes: dict[str, Any], reason: str) -> None:
    """With a reason that repeats nothing of it."""
    with pytest.raises(TokenError, match=reason) as refused:
        caller_of(source, token(changes.pop("name", "RS256"), **changes))
    told = str(refused.value)
    assert WORD.lower() not in told.lower()
    assert refused.value.__cause__ is None
    assert told.isascii()


@pytest.mark.parametrize(
    "changes",
    [
        {"header": {"typ": "JWT"}},
        {"header": {"typ": None}},
        {"header": {"typ": "AT+JWT"}, "nonce": "n"},
        {"header": {"typ": "application/at+jwt"}},
        {"header": {"typ": "JWT"}, "typ": "Bearer", "nonce": "n"},  # Keycloak before 25
        {"nonce": "n"},  # at+jwt says what it is
        {"header": {"x5t": "thumbprint"}},  # Entra ID
        {"aud": ["another", AUDIENCE]},
        {"aud": "second"},
        {"exp": LATER + 0.5},
        {"iat": None},
        {"sub": None, "azp": SUBJECT},
        {"sub": None, "client_id": SUBJECT},
        {"sub": None, "appid": SUBJECT},
        {"sub": SUBJECT, "azp": "an application"},
    ],
    ids=str,
)
def test_what_providers_differ_in_is_taken(source: Path, changes: dict[str, Any]) -> None:
    """As long as it is said to be an access token, or not said to be another kind."""
    assert caller_of(source, token(**changes), audience=(AUDIENCE, "second")).subject == SUBJECT


@pytest.mark.parametrize(
    ("claim", "seconds", "good"), [("exp", -5, True), ("exp", -30, False), ("nbf", 5, True), ("iat", 30, False)]
)
def test_clocks_may_differ_by_the_leeway(source: Path, claim: str, seconds: int, good: bool) -> None:
    """Ten seconds, unless the settings say otherwise."""
    text = token(**{claim: int(time.time()) + seconds})
    with contextlib.nullcontext() if good else pytest.raises(TokenError):
        caller_of(source, text)
    assert caller_of(source, text, leeway_s=60).subject == SUBJECT


def encoded(part: object) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def forged(header: object, claims: object = None, secret: bytes | None = None) -> str:
    """A token made by hand: unsigned, or with a shared secret."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60, "sub": SUBJECT, "scope": "i2moe.admin"}
    signed = f"{encoded(header)}.{encoded(good if claims is None else claims)}"
    mac = b"" if secret is None else hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


PEM = private_key("RS256").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (forged({"alg": "none", "kid": "RS256"}), "alg is refused"),
        (forged({"alg": "None", "kid": "RS256"}), "alg is refused"),
        (forged({"alg": "HS256", "kid": "RS256"}, secret=PEM), "alg is refused"),
        (forged({"alg": "ES256K", "kid": "RS256"}), "alg is refused"),
        (forged({"alg": "EdDSA", "kid": "RS256"}), "alg is refused"),
        (forged({"alg": ["RS256"], "kid": "RS256"}), "alg is refused"),
        (forged({"kid": "RS256"}), "alg is refused"),
        (forged({"alg": "RS256", "kid": "RS256", "crit": ["b64"], "b64": True}, secret=b"x"), "no crit|cannot be read"),
        (forged({"alg": "RS256", "kid": "RS256", "crit": ["exp"], "exp": 1}, secret=b"x"), "no crit|cannot be read"),
        (forged({"alg": "RS256", "kid": "RS256", "crit": []}, secret=b"x"), "no crit|cannot be read"),
        (forged({"alg": "RS256", "kid": 5}, secret=b"x"), "cannot be read|expected a kid"),
        (forged({"alg": "RS256", "kid": "RS256"}), "base64url without padding"),
        (forged({"alg": "RS256", "kid": "RS256"}, secret=b"x"), "signature does not match"),
        (forged({"alg": "ES256", "kid": "ES256"}, secret=b"x"), "signature does not match"),
        (forged({"alg": "RS256", "kid": "RS256"}, [1], b"x"), "cannot be read"),
        (forged([1], secret=b"x"), "cannot be read"),
        (f"{token()}.x", "cannot be read"),
        (token().rpartition(".")[0], "cannot be read"),
        (f"{token('ES256')}==", "base64url without padding|cannot be read"),
        ("", "cannot be read"),
        ("...", "cannot be read"),
        ("a.b.c", "cannot be read"),
        ("\ud800.\ud800.\ud800", "cannot be read"),
        (f"{'W1tb' * 3000}.{'W1tb' * 100}.AA", "cannot be read"),
        ("x" * 16_385, "at most 16384 characters"),
        (token(groups=["x" * 20_000]), "at most 16384 characters"),
    ],
)
def test_a_forged_token_is_refused(source: Path, text: str, reason: str) -> None:
    """Unsigned, signed with a public key as a secret, with what is critical, or no token at all."""
    with pytest.raises(TokenError, match=reason):
        caller_of(source, text)


MUTATED = {name: token(name, scope="i2moe.predict i2moe.audit", exp=LATER) for name in ("RS256", "PS256", "ES256")}
_CHARACTERS = st.sampled_from("ABCabc019-_=.+/ \n\x00é")


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([ISSUER, AUDIENCE, *ALGORITHMS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_texts(draw: st.DrawFn) -> str:
    """A signed token with other characters, more or fewer."""
    text = draw(st.sampled_from(sorted(MUTATED.values())))
    start = draw(st.integers(0, len(text)))
    end = draw(st.sampled_from([start, start + 1, start + 5, len(text)]))
    return text[:start] + draw(st.text(_CHARACTERS, max_size=4)) + text[end:]


@st.composite
def changed_parts(draw: st.DrawFn) -> str:
    """A signed token of which a part is another: anything, other claims, another header, another token's signature."""
    parts = draw(st.sampled_from(sorted(MUTATED.values()))).split(".")
    claims, header = (json.loads(base64.urlsafe_b64decode(f"{parts[i]}==")) for i in (1, 0))
    match draw(st.integers(0, 3)):
        case 0:
            parts[draw(st.integers(0, 2))] = draw(st.text("ABCabc019-_", max_size=400))
        case 1:
            parts[1] = encoded(claims | draw(st.dictionaries(st.sampled_from([*claims, "nbf"]), _JSON, min_size=1)))
        case 2:
            parts[0] = encoded(
                header | draw(st.dictionaries(st.sampled_from([*header, "crit", "b64", "jku"]), _JSON, min_size=1))
            )
        case 3:
            parts[2] = draw(st.sampled_from(sorted(MUTATED.values()))).split(".")[2]
    return ".".join(parts)


@settings(max_examples=600, deadline=None)
@given(text=changed_texts() | changed_parts())
def test_no_changed_token_is_trusted(source: Path, text: str) -> None:
    """Whatever was changed, the answer is a refusal of ours; what was not changed is trusted."""
    tokens = trusting(source)
    if text in MUTATED.values():
        assert asyncio.run(tokens.check(text)).subject == SUBJECT
        return
    with pytest.raises(TokenError):
        asyncio.run(tokens.check(text))
    assert tokens.known(text) is None


@settings(max_examples=300, deadline=None)
@given(
    claims=st.dictionaries(
        st.sampled_from(["sub", "azp", "typ", "exp", "nbf", "iat", "aud", "scope", "scp", "realm_access", "cnf"]), _JSON
    )
)
def test_whatever_an_issuer_signs_gives_an_answer_or_our_refusal(source: Path, claims: dict[str, Any]) -> None:
    """And scopes that are this service's."""
    tokens = trusting(source, scope_claim=("scope", "scp", "realm_access.roles", "realm_access"))
    with contextlib.suppress(TokenError):
        assert asyncio.run(tokens.check(token("ES256", **claims))).scopes <= set(SCOPES)


@pytest.mark.parametrize(
    ("claims", "changes", "scopes"),
    [
        ({"scope": "openid i2moe.predict profile i2moe.explain"}, {}, {"predict", "explain"}),
        ({"scope": "predict admin xi2moe.admin I2MOE.admin i2moe.root i2moe."}, {}, set()),
        ({"scope": None, "scp": ["i2moe.predict", 5, None, ["i2moe.admin"]]}, {}, {"predict"}),
        ({"scope": None, "scp": "i2moe.predict i2moe.audit"}, {}, {"predict", "audit"}),  # Entra ID, for a person
        ({"scope": "i2moe.predict", "scp": ["i2moe.metrics"]}, {}, {"predict", "metrics"}),
        ({"scope": None}, {}, set()),
        ({"scope": None, "realm_access": {"roles": ["i2moe.admin"]}}, {}, set()),
        ({"realm_access": {"roles": ["i2moe.admin"]}}, {"scope_claim": "realm_access.roles"}, {"admin"}),  # Keycloak
        ({"access": {"risk": {"roles": ["predict"]}}}, {"scope_claim": "access.risk.roles", "scope_prefix": ""}, {"predict"}),
        ({"roles": ["i2moe.outcomes"]}, {"scope_claim": "roles,scp"}, {"outcomes"}),  # Entra ID, for a program
        ({"https://risk.example/roles": ["i2moe.audit"]}, {"scope_claim": "https://risk.example/roles"}, {"audit"}),
        ({"realm_access": "i2moe.admin"}, {"scope_claim": "realm_access.roles"}, set()),
        ({"realm_access": [{"roles": ["i2moe.admin"]}]}, {"scope_claim": "realm_access.roles"}, set()),
        ({"roles": {"i2moe.admin": True}}, {"scope_claim": "roles"}, set()),
        ({"scope": "https://risk.example/predict"}, {"scope_prefix": "https://risk.example/"}, {"predict"}),
    ],
)  # fmt: skip
def test_scopes_are_where_the_settings_say(
    source: Path, claims: dict[str, Any], changes: dict[str, str], scopes: set[str]
) -> None:
    """In a text or a list, at any depth, by their whole name."""
    assert caller_of(source, token(**claims), **changes).scopes == scopes


@pytest.mark.parametrize(("lifetime_s", "good"), [(None, True), (301, True), (300, True), (299, False)])
def test_a_token_lives_no_longer_than_it_may(source: Path, lifetime_s: float | None, good: bool) -> None:
    """From its iat to its exp, which it must then name."""
    with contextlib.nullcontext() if good else pytest.raises(TokenError, match="valid for too long"):
        caller_of(source, token(), max_lifetime_s=lifetime_s)
    if lifetime_s is not None:
        with pytest.raises(TokenError, match="iss, aud, exp, iat, found fewer"):
            caller_of(source, token(iat=None), max_lifetime_s=lifetime_s)


def test_a_token_is_checked_once(source: Path) -> None:
    """Then it is known; a token that was refused never is."""
    tokens = trusting(source)
    good, bad = token(), token(exp=1)
    assert tokens.known(good) is None
    caller = asyncio.run(tokens.check(good))

    async def scenario() -> None:
        assert tokens.known(good) is caller
        with pytest.raises(TokenError):
            await tokens.check(bad)
        assert tokens.known(bad) is None
        assert tokens.known(good[:-1]) is None

    asyncio.run(scenario())


def test_a_known_token_is_forgotten_when_it_expires(source: Path) -> None:
    """To the second that a check would refuse it."""
    now = [0.0]
    settings = OidcSettings(issuers={ISSUER: str(source)}, audience=(AUDIENCE,), leeway_s=7)
    tokens, expires = AccessTokens(settings, clock=lambda: now[0]), int(time.time()) + 100
    good = token(exp=expires)

    async def scenario() -> None:
        await tokens.check(good)
        now[0] = expires + 6.9
        assert tokens.known(good) is not None
        now[0] = expires + 7.0
        assert tokens.known(good) is None
        assert len(tokens._verified) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("later", "stays"),
    [
        (jwks("ES256"), False),
        ({"keys": [jwk("RS256-other", kid="RS256")]}, False),  # another key under the same kid
        (jwks("ES256", "RS256"), True),
    ],
)
def test_a_known_token_is_forgotten_with_its_key(later: dict[str, Any], stays: bool) -> None:
    """A key that its issuer no longer publishes opens nothing, however long its tokens would have been valid."""
    published = [jwks("RS256", "ES256")]
    settings = OidcSettings(issuers={ISSUER: URL}, audience=(AUDIENCE,))
    tokens = AccessTokens(settings, fetch=lambda _: published[0])
    good = token()

    async def scenario() -> None:
        await tokens.check(good)
        assert tokens.known(good) is not None
        published[0] = later
        await tokens._issuers[ISSUER].start()
        assert (tokens.known(good) is not None) == stays
        with contextlib.nullcontext() if stays else pytest.raises(TokenError):
            await tokens.check(good)

    asyncio.run(scenario())


def test_the_memory_of_tokens_and_of_rates_is_bounded(source: Path) -> None:
    """What was not asked for longest goes first; whose rate is forgotten has a new one."""
    settings = OidcSettings(issuers={ISSUER: str(source)}, audience=(AUDIENCE,), per_second=0.001, burst=1)
    tokens = AccessTokens(settings, capacity=3)
    texts = [token("ES256", sub=f"ward-{i}") for i in range(5)]

    async def scenario() -> None:
        callers = [await tokens.check(text) for text in texts[:3]]
        assert [tokens.wait_s(caller) for caller in callers] == [0, 0, 0]
        assert tokens.known(texts[0]) is not None
        assert tokens.wait_s(callers[0]) > 900
        for text in texts[3:]:
            assert tokens.wait_s(await tokens.check(text)) == 0
        assert [tokens.known(text) is not None for text in texts] == [True, False, False, True, True]
        assert len(tokens._verified) == len(tokens._allowances) == 3
        assert tokens.wait_s(callers[0]) > 900

    asyncio.run(scenario())


def test_a_rate_belongs_to_a_subject_of_an_issuer(source: Path) -> None:
    """However many tokens it has; the same name at another issuer is somebody else."""
    other = "https://other.example"
    settings = OidcSettings(issuers={ISSUER: str(source), other: str(source)}, audience=(AUDIENCE,), per_second=0.5, burst=2)
    tokens = AccessTokens(settings)

    async def scenario() -> None:
        waits = [tokens.wait_s(await tokens.check(token(jti=str(i)))) for i in range(3)]
        assert waits == [0, 0, 2]
        assert tokens.wait_s(await tokens.check(token(iss=other))) == 0
        assert tokens.wait_s(await tokens.check(token(sub="ward-8"))) == 0

    asyncio.run(scenario())
    unlimited = trusting(source)
    assert {unlimited.wait_s(asyncio.run(unlimited.check(token()))) for _ in range(50)} == {0}


def test_one_issuers_key_signs_for_nobody_else(tmp_path: Path) -> None:
    """Two issuers are trusted, each with keys of its own under the same kid."""
    other = "https://other.example"
    published = {f"{ISSUER}/keys": jwks("RS256"), f"{other}/keys": {"keys": [jwks("RS256-other")["keys"][0] | {"kid": "RS256"}]}}
    settings = OidcSettings(issuers={ISSUER: f"{ISSUER}/keys", other: f"{other}/keys"}, audience=(AUDIENCE,))
    tokens = AccessTokens(settings, fetch=published.__getitem__)

    async def scenario() -> None:
        assert (await tokens.check(token())).issuer == ISSUER
        assert (await tokens.check(token(iss=other, key=private_key("RS256-other")))).issuer == other
        with pytest.raises(TokenError, match="signature does not match"):
            await tokens.check(token(iss=other))

    asyncio.run(scenario())


def test_keys_are_fetched_before_the_first_call() -> None:
    """Of every issuer behind a URL, once; what fails there stops nothing."""
    asked = []

    def fetch(url: str) -> Any:
        asked.append(url)
        raise OSError

    async def scenario() -> None:
        issuers = {ISSUER: URL, "https://b.example": "https://b.example/keys"}
        tokens = AccessTokens(OidcSettings(issuers=issuers, audience=(AUDIENCE,)), fetch=fetch)
        tokens.prepare()
        for issuer in issuers:
            with pytest.raises(TokenError, match="cannot be read now"):
                await tokens.check(token(iss=issuer))

    asyncio.run(scenario())
    assert sorted(asked) == ["https://b.example/keys", URL]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issuers": '{"https://a.example": "/nowhere"}', "audience": "a"}, "expected an https URL or a JWKS file"),
        ({"issuers": '{"https://a.example": "http://a.example/keys"}', "audience": "a"}, "expected an https URL or a JWKS file"),
        ({"issuers": '{"http://a.example": ""}', "audience": "a"}, "expected an https URL, from which"),
        ({"issuers": "a=b", "audience": "a"}, "expected a JSON object"),
        ({"issuers": '["a"]', "audience": "a"}, "dictionary"),
        ({"issuers": '{"https://a.example": ""}'}, "ISSUERS needs AUDIENCE"),
        ({"issuers": '{"https://a.example": ""}', "audience": "a", "scope_claim": " , "}, "at least one SCOPE_CLAIM"),
        ({"scope_prefix": 'a"b'}, "expected visible characters"),
        ({"scope_prefix": "a b"}, "expected visible characters"),
        ({"per_second": 0}, "greater than or equal to 0.000001"),
        ({"per_second": 1e-320}, "greater than or equal to 0.000001"),  # one would wait for ever, which no Retry-After can say
        ({"per_second": "inf"}, "less than or equal to 1000000"),
        ({"burst": 10**400}, "less than or equal to 1000000"),
        ({"burst": 0}, "greater than or equal to 1"),
        ({"leeway_s": 301}, "less than or equal to 300"),
        ({"max_lifetime_s": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], reason: str) -> None:
    """In a sentence; a service with half a lock does not start."""
    with pytest.raises(ValidationError, match=reason):
        OidcSettings(**changes)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists by commas, issuers as JSON; without any of them nothing is asked for, and with a bad one nobody is let in."""
    assert read_oidc_settings() == (None, None)
    monkeypatch.setenv("I2MOE_OIDC_ISSUERS", json.dumps({ISSUER: ""}))
    monkeypatch.setenv("I2MOE_OIDC_AUDIENCE", "a, b")
    monkeypatch.setenv("I2MOE_OIDC_SCOPE_CLAIM", "realm_access.roles")
    settings, problem = read_oidc_settings()
    assert settings == OidcSettings(issuers={ISSUER: ""}, audience=("a", "b"), scope_claim=("realm_access.roles",))
    assert problem is None
    assert unknown_variables({"I2MOE_OIDC_ISSUERS": "", "I2MOE_OIDC_ISSUER": ""}) == ["I2MOE_OIDC_ISSUER"]
    monkeypatch.setenv("I2MOE_OIDC_AUDIENCE", "")
    settings, problem = read_oidc_settings()
    assert settings is not None
    assert settings.issuers == {}
    assert problem is not None
    assert "ISSUERS needs AUDIENCE" in problem


def test_settings_are_documented() -> None:
    """docs/security.md lists every setting with the description it has in the code, and no other."""
    page = Path("docs/security.md").read_text()
    rows = dict(re.findall(r"^\| `(I2MOE_OIDC_\w+)` \|[^|]*\| (.*) \|$", page, flags=re.MULTILINE))
    assert rows == {f"I2MOE_OIDC_{name.upper()}": field.description for name, field in OidcSettings.model_fields.items()}
