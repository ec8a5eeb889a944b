"""A real nginx before a real service, by the project's own configuration with a test's ports, certificate and folders."""

import contextlib
import datetime
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.serving import ROOT, free_port

CONFIGURATION = ROOT / "deploy" / "proxy" / "nginx.conf"
_START_S = 20.0


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    port: int
    certificate: Path

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
    text = CONFIGURATION.read_text()
    replaced = {
        "listen 8443 ": f"listen 127.0.0.1:{port} ",
        "server 127.0.0.1:3000;": f"server 127.0.0.1:{service_port};",
        "/etc/i2moe/tls/": f"{folder}/",
        "/tmp/i2moe-proxy": f"{folder}/proxy",
    }
    for old, new in {**replaced, **(changes or {})}.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def write_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "proxy")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "tls.crt"


@contextlib.contextmanager
def running_proxy(folder: Path, *, service_port: int, changes: dict[str, str] | None = None) -> Iterator[Proxy]:
    """Nginx before what listens at `service_port`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    certificate = write_certificate(folder)
    configuration = configured(folder, service_port=service_port, port=port, changes=changes)
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    with (folder / "nginx.log").open("wb") as log:
        command = [nginx(), "-c", str(configuration), "-e", "stderr", "-g", directives]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        proxy = Proxy(f"https://127.0.0.1:{port}", port, certificate)
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
