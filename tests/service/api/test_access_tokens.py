"""Access tokens at the door: what each opens, how the others are sent away, and what of them is told or logged."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.keys import SCOPES, new_key
from service.access.oidc import AccessTokens
from service.access.settings import OidcSettings
from service.access.tokens import TokenError
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.clinical.settings import ClinicalSettings
from tests.service.access.issuer import AUDIENCE, ISSUER, https_issuer, jwks_file, token
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving_runtime, serving_tokens
from tests.service.api.test_access import NEEDS
from tests.serving import running_server
from tests.tiny_bundle import tiny_example

OPENED = {path: scope for path, scope in NEEDS.items() if scope is not None}
POSTED = ("/predict", "/infer", "/reload", "/outcomes", "-view", "/feedback", "$evaluate")
INVALID = 'Bearer error="invalid_token"'


def trusting(folder: Path, **changes: Any) -> OidcSettings:
    """Settings that trust the tests' issuer, whose keys lie in a file."""
    return OidcSettings(issuers={ISSUER: str(jwks_file(folder, "RS256", "ES256"))}, audience=(AUDIENCE,), **changes)


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    """A key for everything, and its lines."""
    return new_key("everything", list(SCOPES))


@pytest.fixture(scope="module", params=["tokens alone", "tokens and keys"])
def guarded(request: Any, tiny_path: Path, key: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service that asks for tokens, or for tokens or keys."""
    folder = tmp_path_factory.mktemp("issuer")
    (folder / "keys.toml").write_text(key[1])
    settings = {"api_keys": folder / "keys.toml"} if request.param == "tokens and keys" else {}
    with serving_tokens(tiny_path, trusting(folder), **settings) as client:
        yield client


def bearer(**claims: Any) -> dict[str, str]:
    """The headers of a request with a token."""
    return {"Authorization": f"Bearer {token(**claims)}"}


def ask(client: Client, path: str, headers: dict[str, str]) -> httpx.Response:
    """A request to a path, by the method that it takes; its body is seldom one that the path wants."""
    method = "POST" if path.endswith(POSTED) else "GET"
    return client.request(method, path, headers=headers, **({"json": tiny_example()} if method == "POST" else {}))


@pytest.mark.parametrize(("path", "scope"), OPENED.items())
def test_a_token_opens_what_its_scope_opens(guarded: Client, path: str, scope: str) -> None:
    """Every route, audit and admin too, and none by all the other scopes together."""
    passed = ask(guarded, path, bearer(scope=f"openid i2moe.{scope}"))
    assert passed.status_code not in (401, 403, 429), passed.text
    others = " ".join(f"i2moe.{other}" for other in SCOPES if other != scope)
    refused = ask(guarded, path, bearer(scope=others))
    assert refused.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="i2moe.{scope}"'
    assert refused.status_code == 403
    if path.startswith("/fhir"):
        assert refused.json()["issue"][0]["code"] == "forbidden"
    else:
        assert assert_error(refused, 403, "FORBIDDEN")["error"] == f"expected a token with scope i2moe.{scope}"


@pytest.mark.parametrize("path", OPENED)
@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": "Basic dTpw"}, "Bearer"),
        ({"X-API-Key": "i2moe_wrong"}, "Bearer"),
        ({"Authorization": "Bearer i2moe_wrong"}, INVALID),
        (bearer(exp=1), INVALID),
        (bearer(aud="https://other.example"), INVALID),
    ],
)
def test_without_a_good_token_nothing_is_answered(guarded: Client, path: str, headers: dict[str, str], challenge: str) -> None:
    """Told how to show one, and that the one shown is not good (RFC 6750, section 3)."""
    response = ask(guarded, path, headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == challenge
    assert "wrong" not in response.text


@pytest.mark.parametrize("path", [path for path, scope in NEEDS.items() if scope is None])
def test_what_is_open_stays_open(guarded: Client, path: str) -> None:
    """Probes, the page, the description; a bad token shuts none of it."""
    assert guarded.request("GET", path, headers=bearer(exp=1)).status_code in (200, 404)


def test_a_key_or_a_token_is_enough(guarded: Client, key: tuple[str, str]) -> None:
    """Where both are asked for, also beside a bad one of the other kind; without a file of keys no key opens anything."""
    has_keys = guarded.runtime.keys is not None
    for headers in ({"X-API-Key": key[0]}, {"Authorization": f"Bearer {key[0]}"}, {"X-API-Key": key[0], **bearer(exp=1)}):
        assert guarded.post(json=tiny_example(), headers=headers).status_code == (200 if has_keys else 401)
    assert guarded.post(json=tiny_example(), headers={"X-API-Key": "i2moe_wrong", **bearer()}).status_code == 200


def test_a_token_is_checked_with_its_first_request(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature takes longer to check than all else that decides who may call."""
    token = bearer()  # another, made a second later, would have to be checked
    with serving_tokens(tiny_path, trusting(tmp_path)) as client:
        assert client.post(json=tiny_example(), headers=token).status_code == 200

        async def refuse(_: AccessTokens, text: str) -> None:
            raise TokenError("checked again")

        monkeypatch.setattr(AccessTokens, "check", refuse)
        assert client.post(json=tiny_example(), headers=token).status_code == 200
        assert client.refused(401, "UNAUTHORIZED", json=tiny_example(), headers=bearer(jti="2"))["error"] == "checked again"


def test_refusals_are_counted(guarded: Client) -> None:
    """By their code, as those of keys; no token is in the metrics."""
    headers = bearer(scope="i2moe.metrics")

    def count(code: str) -> int:
        text = guarded.request("GET", "/metrics", headers=headers).text
        assert headers["Authorization"].removeprefix("Bearer ") not in text
        found = re.search(rf'i2moe_rejected_total{{reason="{code}"}} (\S+)', text)
        return 0 if found is None else int(float(found[1]))

    before = {code: count(code) for code in ("UNAUTHORIZED", "FORBIDDEN")}
    guarded.post(json=tiny_example(), headers=bearer(exp=1))
    guarded.post(json=tiny_example(), headers=headers)
    assert {code: count(code) - told for code, told in before.items()} == {"UNAUTHORIZED": 1, "FORBIDDEN": 1}


def test_a_subject_that_calls_too_often_waits(tiny_path: Path, tmp_path: Path) -> None:
    """429 says for how long, whichever of its tokens it shows; others go on."""
    with serving_tokens(tiny_path, trusting(tmp_path, per_second=0.001, burst=2)) as client:
        statuses = [client.post(json=tiny_example(), headers=bearer(jti=str(i))).status_code for i in range(2)]
        assert statuses == [200, 200]
        response = client.post(json=tiny_example(), headers=bearer())
        assert_error(response, 429, "RATE_LIMITED")
        assert int(response.headers["retry-after"]) > 900
        fhir = client.post(json=tiny_example(), headers=bearer() | {"Accept": "application/fhir+json"})
        assert fhir.json()["issue"][0]["code"] == "throttled"
        assert client.post(json=tiny_example(), headers=bearer(sub="ward-8")).status_code == 200


def test_clinical_callers_keep_their_own_tokens(clinical_bundle: Path, tmp_path: Path) -> None:
    """Where CDS Hooks has issuers its routes ask for its tokens: an access token opens none of them, and the rest needs one."""
    path = jwks_file(tmp_path, "RS256", "ES256")
    clinical = ClinicalSettings(issuers={ISSUER: str(path)}, public_url="https://cds.example")
    runtime = Runtime(Settings(bundle=clinical_bundle, num_threads=1), clinical=clinical, oidc=trusting(tmp_path))
    cds = {"aud": "https://cds.example", "jti": "1", "header": {"typ": "JWT"}}
    with serving_runtime(runtime) as client:
        assert_error(client.request("GET", "/cds-services", headers=bearer()), 401, "UNAUTHORIZED")
        assert client.request("GET", "/cds-services", headers=bearer(**cds)).status_code == 200
        assert client.post(json=tiny_example(), headers=bearer()).status_code == 200
        assert_error(client.post(json=tiny_example(), headers=bearer(**(cds | {"jti": "2"}))), 401, "UNAUTHORIZED")


def test_the_description_says_what_opens_what(clinical_bundle: Path, tmp_path: Path) -> None:
    """Keys by their scope, tokens by what they name it, providers by where they describe themselves."""
    other = "https://login.example/tenant/v2.0"
    tokens = trusting(tmp_path, scope_prefix="risk/")
    oidc = OidcSettings(issuers={**tokens.issuers, other: ""}, audience=(AUDIENCE,), scope_prefix="risk/")
    clinical = ClinicalSettings(issuers={ISSUER: str(tmp_path / "jwks.json")}, public_url="https://cds.example")
    runtime = Runtime(Settings(bundle=clinical_bundle, num_threads=1), clinical=clinical, oidc=oidc)
    with serving_runtime(runtime) as client:
        document = client.get("/docs.json").json()
    schemes = document["components"]["securitySchemes"]
    assert set(schemes) == {"bearer", "header", "token", "oidc1", "signed"}
    assert schemes["oidc1"]["openIdConnectUrl"] == f"{other}/.well-known/openid-configuration"

    def opens(method: str, path: str) -> Any:
        return document["paths"][path][method]["security"]

    keys, named = ("bearer", "header"), ("token", "oidc1")
    assert opens("post", "/predict") == [{}, *({way: ["predict"]} for way in keys), *({way: ["risk/predict"]} for way in named)]
    assert opens("post", "/admin/reload") == [*({way: ["admin"]} for way in keys), *({way: ["risk/admin"]} for way in named)]
    assert opens("get", "/livez") == opens("get", "/docs.json") == []
    assert opens("post", "/cds-services/{id}") == [{"signed": []}]


def test_the_description_of_every_operation_says_what_opens_it(guarded: Client) -> None:
    """By schemes that it describes; clinical routes by keys and tokens, where nobody else is trusted."""
    document = guarded.get("/docs.json").json()
    schemes = document["components"]["securitySchemes"]
    assert set(schemes) == {"bearer", "header", "token"}
    operations = [told for item in document["paths"].values() for name, told in item.items() if name in ("get", "post")]
    assert all({name for way in told["security"] for name in way} <= set(schemes) for told in operations)
    assert {"token": ["i2moe.predict"]} in document["paths"]["/cds-services/{id}"]["post"]["security"]


@pytest.fixture(scope="module")
def clinical_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose features have LOINC codes."""
    from tests.service.clinical.clinical_bundle import write_clinical_bundle

    return write_clinical_bundle(tmp_path_factory.mktemp("bundles") / "clinical")


@pytest.mark.parametrize("contents", ["{", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}'])
def test_keys_that_cannot_be_read_keep_the_service_unready(tiny_path: Path, tmp_path: Path, contents: str) -> None:
    """It says why, and nobody is let in."""
    settings = trusting(tmp_path)
    (tmp_path / "jwks.json").write_text(contents)
    with serving_tokens(tiny_path, settings) as client:
        told = assert_error(client.get("/v2/health/ready"), 503, "MODEL_NOT_READY")["error"]
        assert "jwks.json" in told
        assert "c2VjcmV0" not in told
        assert (
            "cannot be read now" in assert_error(client.post(json=tiny_example(), headers=bearer()), 401, "UNAUTHORIZED")["error"]
        )
        assert_error(client.get("/metrics"), 401, "UNAUTHORIZED")


def test_settings_that_cannot_be_read_let_nobody_in(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for tokens and misspelt something has not asked for an open service."""
    monkeypatch.setenv("I2MOE_BUNDLE", str(tiny_path))
    monkeypatch.setenv("I2MOE_OIDC_ISSUERS", json.dumps({ISSUER: "/nowhere"}))
    monkeypatch.setenv("I2MOE_OIDC_AUDIENCE", AUDIENCE)
    monkeypatch.setattr("service.api.runtime.configure_logging", lambda level, form: None)
    with serving_runtime(Runtime.from_environment()) as client:
        assert "I2MOE_OIDC_ISSUERS" in assert_error(client.get("/v2/health/ready"), 503, "MODEL_NOT_READY")["error"]
        assert_error(client.get("/metrics"), 401, "UNAUTHORIZED")
        assert_error(client.request("GET", "/metrics", headers=bearer(scope="i2moe.metrics")), 401, "UNAUTHORIZED")


def test_a_provider_that_is_away_lets_the_service_start(
    tiny_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """It becomes ready, refuses its tokens, and the log says why once."""
    monkeypatch.setattr(logging.getLogger("i2moe"), "propagate", True)
    settings = OidcSettings(issuers={ISSUER: "https://127.0.0.1:1/keys"}, audience=(AUDIENCE,))
    with caplog.at_level(logging.WARNING), serving_tokens(tiny_path, settings) as client:
        assert client.get("/v2/health/ready").status_code == 200
        for _ in range(3):
            assert "cannot be read now" in client.refused(401, "UNAUTHORIZED", json=tiny_example(), headers=bearer())["error"]
    assert caplog.text.count("https://127.0.0.1:1/keys: cannot be read as a JWKS (URLError)") == 1
    assert "I2MOE_CDS_ISSUERS is not set" not in caplog.text  # those routes ask for tokens, too


@pytest.mark.slow
def test_the_real_process_discovers_its_provider(tiny_path: Path, tmp_path: Path) -> None:
    """Over https, ahead of BentoML's layers too; no part of any token is ever logged."""
    with https_issuer(tmp_path) as provider:
        provider.publish("RS256")
        environment = {
            "I2MOE_OIDC_ISSUERS": json.dumps({provider.url: ""}),
            "I2MOE_OIDC_AUDIENCE": AUDIENCE,
            "I2MOE_OIDC_SCOPE_CLAIM": "realm_access.roles",
            "I2MOE_ACCESS_LOG": "true",
            "I2MOE_LOG_LEVEL": "DEBUG",
            "SSL_CERT_FILE": str(provider.certificate),
            "no_proxy": "127.0.0.1",
        }
        claims: dict[str, Any] = {
            "iss": provider.url,
            "scope": None,
            "sub": "zqx7731",
            "realm_access": {"roles": ["i2moe.predict"]},
        }
        shown = [
            token(**claims),
            token(**claims, exp=1),
            token("ES256", **claims),
            token(**(claims | {"iss": "https://zqx7731"})),
        ]
        with running_server(tiny_path, tmp_path / "server", environment=environment) as server:

            def status(text: str) -> int:
                headers = {"Authorization": f"Bearer {text}"}
                return httpx.post(f"{server.url}/predict", json=tiny_example(), headers=headers, timeout=10).status_code

            assert [status(text) for text in shown] == [200, 401, 401, 401]
            assert server.post("/predict", tiny_example()).status_code == 401
            assert server.get("/readyz").status_code == 200
            parts = {part for text in shown for part in text.split(".")} | {"zqx7731"}
            assert [part for part in parts if part in server.log] == []
        assert provider.asked == ["/.well-known/openid-configuration", "/keys"]
