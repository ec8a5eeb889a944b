"""The keys of issuers: which are used, how often they are asked for, and what happens when they cannot be had."""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.access import jwks as module
from service.access.jwks import IssuerKeys, JwksError, fetch_json
from tests.service.access.issuer import ISSUER, HttpsIssuer, https_issuer, jwk, jwks, jwks_file

URL = "https://idp.example/keys"
Json = dict[str, Any]


class Source:
    """Stands in for what lies behind a URL: says what it is told to say, and counts."""

    def __init__(self, document: Any) -> None:
        self.document, self.asked = document, 0

    def __call__(self, url: str) -> Any:
        assert url == URL
        self.asked += 1
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


class Remote:
    """Keys behind a URL, with a clock that is set by hand."""

    def __init__(self, document: Any) -> None:
        self.now, self.source = 1000.0, Source(document)
        self.keys = IssuerKeys(URL, issuer=ISSUER, fetch=self.source, clock=lambda: self.now)

    async def settle(self) -> None:
        """Wait for an attempt that nobody waits for."""
        while self.keys._refreshing is not None:
            await asyncio.sleep(0.001)


def test_keys_are_fetched_once() -> None:
    """However many ask at the same time; later ones ask nobody."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256", "ES256"))
        found = await asyncio.gather(*(remote.keys.key(kid) for kid in ("RS256", "ES256") * 20))
        assert None not in found
        assert found[0] is remote.keys.held("RS256")
        assert remote.source.asked == 1

    asyncio.run(scenario())


def test_invented_kids_cause_one_fetch_a_minute() -> None:
    """A caller needs no trusted token to name a kid."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256"))
        for second in range(181):
            remote.now = 1000.0 + second
            assert {await remote.keys.key(f"invented-{i}") for i in range(5)} == {None}
        assert remote.source.asked == 4

    asyncio.run(scenario())


def test_a_new_key_is_found_and_an_old_one_dropped() -> None:
    """Rotation: by a kid that is not known, at once where the last look is a minute ago."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256"))
        before = await remote.keys.key("RS256")
        remote.source.document = jwks("RS256", "ES256")
        remote.now += 59
        assert await remote.keys.key("ES256") is None
        remote.now += 1
        assert await remote.keys.key("ES256") is not None
        assert remote.keys.held("RS256") is before  # the same object, as long as it is published
        remote.source.document = jwks("ES256")
        remote.now += 60
        assert await remote.keys.key("another") is None
        assert remote.keys.held("RS256") is None

    asyncio.run(scenario())


def test_another_key_under_the_same_kid_is_another_key() -> None:
    """Who was let in by the one before is looked at again."""

    async def scenario() -> None:
        remote = Remote({"keys": [jwk("RS256", kid="a")]})
        before = await remote.keys.key("a")
        remote.source.document = {"keys": [jwk("RS256-other", kid="a")]}
        remote.now += 60
        await remote.keys.key("invented")
        assert remote.keys.held("a") not in (None, before)

    asyncio.run(scenario())


def test_old_keys_are_read_again_beside_the_requests() -> None:
    """After ten minutes; the request that notices does not wait."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256"))
        assert await remote.keys.key("RS256")
        remote.now += 600
        remote.source.document = jwks("ES256")
        assert remote.keys.held("RS256")
        await remote.settle()
        assert remote.keys.held("RS256") is None
        assert remote.source.asked == 2

    asyncio.run(scenario())


def test_after_a_long_pause_the_first_request_waits_for_new_keys() -> None:
    """Nobody looked for eleven minutes: a key that was withdrawn in them opens nothing."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256"))
        assert await remote.keys.key("RS256")
        remote.now += 660
        remote.source.document = jwks("ES256")
        assert remote.keys.held("RS256") is None
        assert await remote.keys.key("RS256") is None
        assert await remote.keys.key("ES256")

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", [OSError("no route"), "x", [], {}, {"keys": []}, {"keys": {}}, {"keys": [5, None]}])
def test_an_issuer_that_does_not_answer_changes_nothing(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The keys from before stay, whatever it says; it is asked again after a minute, and the log says so once."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256"))
        assert await remote.keys.key("RS256")
        remote.source.document = broken
        for _ in range(30):
            remote.now += 60
            assert await remote.keys.key("RS256")
            await remote.settle()
            assert remote.keys.held("RS256")  # between two attempts, too
        assert remote.source.asked == 22  # not before the tenth minute, then every minute
        remote.source.document = jwks("RS256", "ES256")
        remote.now += 60
        assert await remote.keys.key("ES256")
        assert remote.keys.problem is None

    with caplog.at_level(logging.WARNING, logger="i2moe.jwks"):
        asyncio.run(scenario())
    assert len(caplog.records) == 1
    assert "the keys from before stay" in caplog.text
    assert "no route" not in caplog.text


def test_an_issuer_that_never_answered_is_asked_once_a_minute() -> None:
    """Also where every caller's kid is unknown because of it."""

    async def scenario() -> None:
        remote = Remote(OSError())
        for second in range(121):
            remote.now = 1000.0 + second
            assert await remote.keys.key("RS256") is None
        assert remote.keys.is_empty
        assert remote.source.asked == 3

    asyncio.run(scenario())


def test_an_issuer_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on, requests stop waiting, no second fetch is begun beside it, and what it says at last counts."""
    monkeypatch.setattr(module, "_WAIT_S", 0.05)
    go_on, now, asked = threading.Event(), [0.0], list[str]()

    def hang(url: str) -> Any:
        asked.append(url)
        go_on.wait(20)
        return jwks("RS256")

    async def scenario() -> None:
        keys = IssuerKeys(URL, issuer=ISSUER, fetch=hang, clock=lambda: now[0])
        assert await asyncio.gather(*(keys.key("RS256") for _ in range(20))) == [None] * 20
        for _ in range(5):
            now[0] += 60
            async with asyncio.timeout(0):  # these do not wait at all
                assert await keys.key("RS256") is None
        assert "not read within" in str(keys.problem)
        go_on.set()
        while keys._refreshing is not None:
            await asyncio.sleep(0.001)
        assert keys.held("RS256") is not None
        assert len(asked) == 1

    asyncio.run(scenario())


def test_a_cancelled_request_cancels_no_fetch() -> None:
    """Others wait for the same one."""

    async def scenario() -> None:
        remote = Remote(jwks("RS256"))
        impatient, patient = (asyncio.create_task(remote.keys.key("RS256")) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await patient is not None
        assert remote.source.asked == 1

    asyncio.run(scenario())


def test_a_file_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was added is found within a second, one that was taken away is forgotten after ten."""
    now = [0.0]
    path = jwks_file(tmp_path, "RS256")
    keys = IssuerKeys(str(path), issuer=ISSUER, clock=lambda: now[0])
    keys.read()

    async def scenario() -> None:
        assert await keys.key("RS256")
        jwks_file(tmp_path, "ES256")
        now[0] += 1
        assert await keys.key("ES256")
        path.write_text("{")
        now[0] += 10
        assert await keys.key("ES256")
        assert await keys.key("RS256") is None

    asyncio.run(scenario())


SECRET = {"kty": "oct", "kid": "a", "k": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"}
PRIVATE_EC = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True) | {"kid": "a"}
PRIVATE_RSA = RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=2048), as_dict=True) | {"kid": "a"}


@pytest.mark.parametrize(
    "unusable",
    [
        SECRET,
        PRIVATE_EC,
        PRIVATE_RSA,
        jwk("RS256-short", kid="a"),
        jwk(kid=None),
        jwk(kid=5),
        jwk(use="enc"),
        jwk(key_ops=["encrypt"]),
        jwk(alg="HS256"),
        jwk(alg="ES256"),
        jwk(alg=["RS256"]),
        jwk("ES256", alg="ES384"),
        jwk("ES256", crv="secp256k1"),
        jwk("ES256", crv="P-384"),
        jwk("ES256", x="AAAA"),
        jwk(n="!"),
        jwk(kty="OKP"),
        {},
        None,
    ],
)
def test_keys_that_must_not_verify_are_left_out(unusable: Any, tmp_path: Path) -> None:
    """Secrets, private keys, short keys, keys for other ends; a set of such alone is an error that holds none of it."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [unusable, jwk("ES512", kid="good")]}))
    keys = IssuerKeys(str(path), issuer=ISSUER)
    keys.read()
    assert list(keys._keys) == ["good"]
    path.write_text(json.dumps({"keys": [unusable]}))
    with pytest.raises(JwksError, match="expected at least a public RSA key of 2048 bits or an EC key") as refused:
        keys.read()
    told = str(refused.value).removeprefix(f"{path}: ")
    members = unusable.values() if isinstance(unusable, dict) else ()
    assert not any(len(str(member)) > 5 and str(member) in told for member in members)


def test_a_key_is_for_its_own_algorithms() -> None:
    """An RSA key for the six of RSA, an EC key for its curve's, one with an alg for that alone."""

    async def scenario() -> None:
        remote = Remote({"keys": [jwk("RS256"), jwk("RS256", kid="one", alg="PS256"), jwk("ES384")]})
        found = {kid: await remote.keys.key(kid) for kid in ("RS256", "one", "ES384")}
        assert {kid: key and len(key.algorithms) for kid, key in found.items()} == {"RS256": 6, "one": 1, "ES384": 1}
        assert found["ES384"] is not None
        assert found["ES384"].algorithms == {"ES384"}

    asyncio.run(scenario())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["RSA", "EC", "P-256", "AQAB", "sig"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*jwk(), "x", "y", "crv", "keys"]), inner, max_size=6)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON, JSON)
def test_whatever_is_published_raises_one_error(document: Any, key: Any) -> None:
    """Or gives keys."""
    for found in (document, {"keys": document}, {"keys": [key, {**jwk(), **key} if isinstance(key, dict) else key]}):
        with contextlib.suppress(JwksError):
            IssuerKeys(URL, issuer=ISSUER, fetch=lambda _, found=found: found).read()  # type: ignore[misc]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsIssuer]:
    """A real https server, whose certificate this process trusts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with https_issuer(tmp_path) as issuer:
        monkeypatch.setenv("SSL_CERT_FILE", str(issuer.certificate))
        yield issuer


def test_keys_are_read_over_https(server: HttpsIssuer) -> None:
    """From the URL of the settings, or from where the issuer's own document says."""
    server.publish("RS256", "ES256")
    for source in (f"{server.url}/keys", ""):
        keys = IssuerKeys(source, issuer=server.url)
        assert keys.is_remote
        assert asyncio.run(keys.key("ES256")) is not None
    assert server.asked == ["/keys", "/.well-known/openid-configuration", "/keys"]


def test_the_issuers_slash_is_no_part_of_where_its_document_lies(server: HttpsIssuer) -> None:
    """But of its name it is (OpenID Connect Discovery 1.0, section 4.1)."""
    server.publish("RS256", issuer=f"{server.url}/")
    IssuerKeys("", issuer=f"{server.url}/").read()
    with pytest.raises(JwksError, match="of this very issuer"):
        IssuerKeys("", issuer=server.url).read()


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (404, "HTTPError"),
        (500, "HTTPError"),
        (b"<html>", "JSONDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"\xff", "UnicodeDecodeError"),
        (b" " * 1_000_001, "at most 1000000 bytes"),
        ("/elsewhere", "HTTPError"),  # a redirect
    ],
)
def test_what_a_server_says_instead_of_keys_is_told_in_a_word(server: HttpsIssuer, document: Any, why: str) -> None:
    """And a redirect is not followed, not even to keys."""
    server.publish("RS256")
    server.documents |= {"/elsewhere": server.documents["/keys"], "/keys": document}
    with pytest.raises(JwksError, match=why):
        IssuerKeys(f"{server.url}/keys", issuer=server.url).read()
    assert "/elsewhere" not in server.asked


@pytest.mark.parametrize("uri", ["http://127.0.0.1/keys", "file:///etc/passwd", "data:,{}", "/keys"])
def test_discovery_leads_to_https_alone(server: HttpsIssuer, uri: str) -> None:
    """Whatever the issuer's document says."""
    server.publish("RS256", jwks_uri=uri)
    with pytest.raises(JwksError, match="expected an https jwks_uri"):
        IssuerKeys("", issuer=server.url).read()
    with pytest.raises(JwksError, match="https URL"):
        fetch_json(uri)


def test_a_certificate_that_nobody_vouches_for_is_refused(server: HttpsIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys from whoever is on the way would open everything."""
    server.publish("RS256")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(JwksError, match="URLError"):
        IssuerKeys(f"{server.url}/keys", issuer=server.url).read()
    assert server.asked == []


def test_a_server_that_is_slow_or_gone_is_told(server: HttpsIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what it is; the test of a stop is that the next word is another."""
    monkeypatch.setattr(module, "_FETCH_TIMEOUT_S", 0.1)
    server.publish("RS256")
    server.delay_s = 0.5
    with pytest.raises(JwksError, match="TimeoutError"):
        IssuerKeys(f"{server.url}/keys", issuer=server.url).read()
    with pytest.raises(JwksError, match="URLError"):
        IssuerKeys("https://127.0.0.1:1/keys", issuer=server.url).read()


def test_a_server_that_drips_is_left(server: HttpsIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, all of them would not; no stop of the service waits for the last."""
    monkeypatch.setattr(module, "_BODY_S", 0.1)
    server.publish("RS256")
    server.drip_s = 0.02
    with pytest.raises(JwksError, match=r"/keys: expected an end within 0.1 s"):
        IssuerKeys(f"{server.url}/keys", issuer=server.url).read()
