"""The compose project: every file and setting it names exists, and every container is locked down."""

import datetime
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from deploy.compose import secrets
from deploy.compose.certificate import CERTIFICATE, KEY, make_certificate
from deploy.compose.secrets import TLS, make_secrets
from service.access.keys import Keys
from service.api.settings import unknown_variables
from tests.deploy.prometheus import RULES, program
from tests.deploy.proxy import CONFIGURATION, SCRIPT, running_proxy
from tests.serving import ROOT, running_server
from tests.tiny_bundle import write_tiny_bundle

FOLDER = ROOT / "deploy" / "compose"
PROJECT: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = PROJECT["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_locked_down(name: str) -> None:
    """No root, no capability, no new privilege, nothing writable but what is named; only this machine reaches their ports."""
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service
    assert all(port.startswith(("127.0.0.1:", "${I2MOE_LISTEN:-127.0.0.1}:")) for port in service.get("ports", ()))
    assert all(volume["read_only"] for volume in service.get("volumes", ()) if volume["type"] == "bind")


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    """Files and folders of the project; named volumes, networks and secrets are declared."""
    service = SERVICES[name]
    for volume in service.get("volumes", ()):
        if volume["type"] == "volume":
            assert volume["source"] in PROJECT["volumes"]
        elif "$" not in volume["source"]:
            assert (FOLDER / volume["source"]).exists(), volume["source"]
    assert set(service.get("networks", ())) <= set(PROJECT["networks"])
    assert set(service.get("secrets", ())) <= set(PROJECT["secrets"])


def test_every_container_tells_its_health() -> None:
    """The service's image does so itself; what holds the network has none."""
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    assert [name for name, service in SERVICES.items() if "healthcheck" not in service] == ["address", "i2moe"]


def test_the_service_is_set_up_as_its_image_expects() -> None:
    """Settings exist, the user and the bundle's place are the image's, keys are a secret, and the grace is long enough."""
    service, dockerfile = SERVICES["i2moe"], (ROOT / "Dockerfile").read_text()
    assert unknown_variables(service["environment"]) == []
    assert f"USER {service['user'].split(':')[0]}\n" in dockerfile
    assert f"I2MOE_BUNDLE={service['volumes'][0]['target']}\n" in dockerfile
    assert service["environment"]["I2MOE_API_KEYS"] == "/run/secrets/api_keys"
    assert int(service["stop_grace_period"].removesuffix("s")) > 15


def test_the_proxy_is_the_one_way_in() -> None:
    """Clients reach its port alone, on a network that neither it nor the service owns; Prometheus finds the service by name."""
    owner = "address"
    assert {name for name, service in SERVICES.items() if service.get("network_mode") == f"service:{owner}"} == {"i2moe", "proxy"}
    (port,) = [port.rpartition(":")[2] for port in SERVICES[owner]["ports"]]
    assert f"listen {port} ssl" in CONFIGURATION.read_text()
    assert SERVICES[owner]["networks"]["monitoring"]["aliases"] == ["i2moe"]
    assert SERVICES[owner]["image"] == SERVICES["proxy"]["image"]


def test_the_proxy_is_the_shipped_one() -> None:
    """deploy/proxy's configuration and script, the certificate where these look, and as many open files as they ask for."""
    proxy = SERVICES["proxy"]
    targets = {volume["target"]: volume["source"] for volume in proxy["volumes"]}
    assert (FOLDER / targets["/etc/i2moe/proxy"]).resolve() == CONFIGURATION.parent
    assert proxy["entrypoint"] == ["sh", f"/etc/i2moe/proxy/{SCRIPT.name}"]
    assert "/etc/i2moe/proxy/nginx.conf\n" in SCRIPT.read_text()
    assert targets["/etc/i2moe/tls"] == f"${{I2MOE_TLS:-./{TLS.relative_to(FOLDER)}}}"
    for name in (CERTIFICATE, KEY):
        assert f" /etc/i2moe/tls/{name};" in CONFIGURATION.read_text()
        assert f" /etc/i2moe/tls/{name}" in SCRIPT.read_text()
    assert f"worker_rlimit_nofile {proxy['ulimits']['nofile']};" in CONFIGURATION.read_text()


def test_the_proxy_stops_before_the_service_does() -> None:
    """By nginx's graceful signal, with time for the longest answer: what it has begun still finds the service there."""
    proxy = SERVICES["proxy"]
    assert "i2moe" in proxy["depends_on"]
    assert proxy["stop_signal"] == "SIGQUIT"
    assert "exec nginx" in SCRIPT.read_text()  # or the shell would get the signal
    (longest,) = re.findall(r"proxy_read_timeout (\d+)s;", CONFIGURATION.read_text())
    assert int(proxy["stop_grace_period"].removesuffix("s")) > int(longest)


def test_prometheus_scrapes_as_everywhere() -> None:
    """Its configuration is deploy/prometheus's, with a key and without an Alertmanager."""
    own = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    common = yaml.safe_load((RULES / "prometheus.yml").read_text())
    assert own["scrape_configs"][0].pop("authorization") == {"credentials_file": "/run/secrets/metrics_key"}
    del common["alerting"]
    assert own == common
    command = [program("promtool"), "check", "config", "--syntax-only", str(FOLDER / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_grafana_finds_its_dashboard_and_its_data() -> None:
    """The provider reads the folder that the dashboard is mounted into; the data source is the Prometheus beside it."""
    (provider,) = yaml.safe_load((FOLDER / "grafana" / "dashboards.yml").read_text())["providers"]
    targets = [Path(volume["target"]) for volume in SERVICES["grafana"]["volumes"]]
    assert Path(provider["options"]["path"]) / "i2moe.json" in targets
    (source,) = yaml.safe_load((FOLDER / "grafana" / "datasources.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")


def test_secrets_are_made_once_and_let_in_whom_they_should(tmp_path: Path) -> None:
    """Files for every secret of the project, in a folder for their owner; Prometheus may read metrics and nothing else."""
    caller = make_secrets(tmp_path / "secrets")
    named = {Path(secret["file"]).name for secret in PROJECT["secrets"].values()}
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == named
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    keys = Keys(tmp_path / "secrets" / "api_keys.toml")
    entries = [keys.find(token) for token in (caller, (tmp_path / "secrets" / "metrics_key").read_text())]
    assert [entry and entry.scopes for entry in entries] == [{"predict", "explain"}, {"metrics"}]
    assert caller not in (tmp_path / "secrets" / "api_keys.toml").read_text()
    assert len(tomllib.loads((tmp_path / "secrets" / "api_keys.toml").read_text())["keys"]) == 2
    with pytest.raises(FileExistsError):
        make_secrets(tmp_path / "secrets")


def test_secrets_and_a_certificate_are_made_where_they_are_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has keys from before gets a certificate and keeps the keys; who has both is told so."""
    folder = tmp_path / "secrets"
    monkeypatch.setattr(secrets, "FOLDER", folder)
    monkeypatch.setattr(secrets, "TLS", folder / "tls")
    make_secrets(folder)
    keys = (folder / "api_keys.toml").read_text()
    assert secrets.main() == 0
    assert "callers' key" not in capsys.readouterr().err
    assert (folder / "api_keys.toml").read_text() == keys
    assert secrets.main() == 1
    assert "is there already" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert secrets.main() == 0
    assert "shown this once" in capsys.readouterr().err
    assert {path.name for path in (folder / "tls").iterdir()} == {CERTIFICATE, KEY}


def test_a_certificate_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """Or the next attempt would find a folder and take it for done."""
    with pytest.raises(ValueError, match="DNSName"):
        make_certificate(tmp_path / "tls", names=["kränkenhaus"])
    assert not (tmp_path / "tls").exists()


def test_the_certificate_is_for_the_names_that_clients_use(tmp_path: Path) -> None:
    """Of this machine alone, for a server and no authority, for a year and not longer than clients take; the key is its own."""
    end = make_certificate(tmp_path / "tls", names=["localhost", "127.0.0.1", "::1", "risk.hospital.example"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "tls" / CERTIFICATE).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "risk.hospital.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert 365 < (end - datetime.datetime.now(datetime.UTC)).days < 398
    key = serialization.load_pem_private_key((tmp_path / "tls" / KEY).read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    with pytest.raises(FileExistsError):
        make_certificate(tmp_path / "tls", names=["localhost"])


def test_the_proxy_can_read_its_certificate_and_others_cannot(tmp_path: Path) -> None:
    """Its container's user is not their owner, for whom alone the folder above is; umasks may be strict."""
    before = os.umask(0o077)
    try:
        make_secrets(tmp_path / "secrets")
        make_certificate(tmp_path / "secrets" / "tls", names=["localhost"])
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").rglob("*") if "tls" in str(path)}
    assert modes == {"tls": 0o755, CERTIFICATE: 0o444, KEY: 0o444}
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


@pytest.mark.slow
def test_the_secrets_that_are_made_serve(tmp_path: Path) -> None:
    """A real nginx with the certificate before a real service with the keys: callers who trust that one file are answered."""
    key = make_secrets(tmp_path / "secrets")
    make_certificate(tmp_path / "secrets" / "tls", names=["localhost", "127.0.0.1"])
    keys = {"I2MOE_API_KEYS": str(tmp_path / "secrets" / "api_keys.toml")}
    with running_server(write_tiny_bundle(tmp_path / "bundle").path, tmp_path / "service", environment=keys) as server:
        port = int(server.url.rpartition(":")[2])
        with running_proxy(tmp_path / "secrets", service_port=port, by_script=True) as proxy:
            for url in (proxy.url, f"https://localhost:{proxy.port}"):
                answer = httpx.get(f"{url}/model", headers={"X-API-Key": key}, verify=proxy.trust)
                assert answer.status_code == 200
            assert httpx.get(f"{proxy.url}/model", verify=proxy.trust).status_code == 401
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                httpx.get(f"{proxy.url}/model")


def test_secrets_are_not_committed() -> None:
    """Nor packed into the image, which takes the service alone."""
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
