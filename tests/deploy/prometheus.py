"""A real Prometheus that scrapes one target of a test, by the project's own rules with shorter intervals."""

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import ROOT, Server, free_port

RULES = ROOT / "deploy" / "prometheus"
_START_S = 30.0


def program(name: str) -> str:
    """The path of a program of Prometheus; skips where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt install prometheus)")
    return found


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The answer to an instant query; fails where Prometheus does not understand it."""
        response = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10)
        body = response.json()
        assert body["status"] == "success", f"{expression}: {body}"
        assert not body.get("warnings"), body
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The first answer that is not empty."""
        give_up = time.monotonic() + _START_S
        while time.monotonic() < give_up:
            if found := self.query(expression):
                return found
            time.sleep(0.2)
        raise AssertionError(f"{expression}: no answer in {_START_S:g} s")


@contextlib.contextmanager
def running_prometheus(server: Server, folder: Path) -> Iterator[Prometheus]:
    """Scrape `server` every second as job i2moe, and apply the rules as often."""
    for name in ("recording.yml", "alerts.yml"):
        text = (RULES / name).read_text()
        (folder / name).write_text(re.sub(r"(?m)^    interval: .*\n", "", text))
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["recording.yml", "alerts.yml"],
        "scrape_configs": [{"job_name": "i2moe", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    options = [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", *options]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        _wait_until_ready(prometheus, process, folder / "prometheus.log")
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_ready(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/-/ready", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"Prometheus does not start:\n{log.read_text()}")
