"""A real nginx before a real service, by the project's own configuration with a test's ports, certificate and folders."""

import contextlib
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from deploy.compose.certificate import CERTIFICATE, make_certificate
from tests.serving import ROOT, free_port

CONFIGURATION = ROOT / "deploy" / "proxy" / "nginx.conf"
SCRIPT = CONFIGURATION.with_name("run.sh")
_START_S = 20.0


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    port: int
    certificate: Path
    process: "subprocess.Popen[bytes]"

    @property
    def trust(self) -> ssl.SSLContext:
        """What trusts its certificate, and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))


def nginx() -> str:
    """The path of nginx; skips where it is not installed."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx-light)")
    return found


def configured(folder: Path, *, service_port: int, port: int, changes: dict[str, str] | None = None) -> Path:
    """The configuration, for a test. Each thing that is changed must be there."""
    replaced = {
        "listen 8443 ": f"listen 127.0.0.1:{port} ",
        "server 127.0.0.1:3000;": f"server 127.0.0.1:{service_port};",
        "/etc/i2moe/": f"{folder}/",
        "/tmp/i2moe-proxy": f"{folder}/proxy",
    }
    return _changed(CONFIGURATION, folder, {**replaced, **(changes or {})})


def _changed(file: Path, folder: Path, changes: dict[str, str]) -> Path:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / file.name
    path.write_text(text)
    return path


def command(configuration: Path, *, by_script: bool) -> list[str]:
    """What starts nginx: itself, or as in a container the script, which then looks for another certificate all the time."""
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    if not by_script:
        return [nginx(), "-c", str(configuration), "-e", "stderr", "-g", directives]
    folder = configuration.parent
    changes = {"/etc/i2moe/proxy/": f"{folder}/", "/etc/i2moe/": f"{folder}/", "daemon off;": directives, "sleep 60": "sleep 0.1"}
    script = _changed(SCRIPT, folder, {**changes, "nginx -c": f"{nginx()} -c"})
    return ["sh", str(script)]


@contextlib.contextmanager
def running_proxy(
    folder: Path, *, service_port: int, changes: dict[str, str] | None = None, by_script: bool = False
) -> Iterator[Proxy]:
    """Nginx before what listens at `service_port`, with the certificate in `folder` / tls, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    if not (folder / "tls").exists():
        make_certificate(folder / "tls", names=["127.0.0.1"])
    configuration = configured(folder, service_port=service_port, port=port, changes=changes)
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command(configuration, by_script=by_script), stdout=log, stderr=log)
    try:
        proxy = Proxy(f"https://127.0.0.1:{port}", port, folder / "tls" / CERTIFICATE, process)
        _wait(proxy, process, folder / "nginx.log")
        yield proxy
    finally:
        process.terminate()
        process.wait(20)


def _wait(proxy: Proxy, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{proxy.url}/livez", verify=proxy.trust, timeout=2)
            return
        time.sleep(0.05)
    raise AssertionError(f"nginx does not start:\n{log.read_text()}")
