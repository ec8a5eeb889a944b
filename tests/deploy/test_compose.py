"""The compose project: every file and setting it names exists, and every container is locked down."""

import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.compose.secrets import make_secrets
from service.access.keys import Keys
from service.api.settings import unknown_variables
from tests.deploy.prometheus import RULES, program
from tests.serving import ROOT

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
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume["read_only"] for volume in service["volumes"] if volume["type"] == "bind")


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    """Files of the project; named volumes, networks and secrets are declared."""
    service = SERVICES[name]
    for volume in service["volumes"]:
        if volume["type"] == "volume":
            assert volume["source"] in PROJECT["volumes"]
        elif "$" not in volume["source"]:
            assert (FOLDER / volume["source"]).is_file(), volume["source"]
    assert set(service["networks"]) <= set(PROJECT["networks"])
    assert set(service.get("secrets", ())) <= set(PROJECT["secrets"])


def test_every_container_tells_its_health() -> None:
    """The service's image does so itself."""
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    assert [name for name, service in SERVICES.items() if "healthcheck" not in service] == ["i2moe"]


def test_the_service_is_set_up_as_its_image_expects() -> None:
    """Settings exist, the user and the bundle's place are the image's, keys are a secret, and the grace is long enough."""
    service, dockerfile = SERVICES["i2moe"], (ROOT / "Dockerfile").read_text()
    assert unknown_variables(service["environment"]) == []
    assert f"USER {service['user'].split(':')[0]}\n" in dockerfile
    assert f"I2MOE_BUNDLE={service['volumes'][0]['target']}\n" in dockerfile
    assert service["environment"]["I2MOE_API_KEYS"] == "/run/secrets/api_keys"
    assert int(service["stop_grace_period"].removesuffix("s")) > 15


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


def test_secrets_are_not_committed() -> None:
    """Nor packed into the image, which takes the service alone."""
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
