"""An issuer of access tokens: keys made here, its JWKS, its tokens, and a real https server that publishes them."""

import datetime
import functools
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE, SUBJECT = "https://idp.example/realms/hospital", "https://risk.example", "ward-7"


@functools.cache
def private_key(name: str) -> Any:
    """A key by its name, made once: RS..., PS... or ES..., as its algorithm, and whatever follows."""
    curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
    if name[:5] in curves:
        return ec.generate_private_key(curves[name[:5]]())
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name.endswith("short") else 2048)


def jwk(name: str = "RS256", **members: Any) -> dict[str, Any]:
    """A public key as it is published; `kid` is its name."""
    algorithm = ECAlgorithm if name.startswith("ES") else RSAAlgorithm
    return {**algorithm.to_jwk(private_key(name).public_key(), as_dict=True), "kid": name, **members}


def jwks(*names: str) -> dict[str, Any]:
    """A set of public keys."""
    return {"keys": [jwk(name) for name in names]}


def jwks_file(folder: Path, *names: str) -> Path:
    """The same in a file."""
    path = folder / "jwks.json"
    path.write_text(json.dumps(jwks(*names)))
    return path


def token(name: str = "RS256", *, header: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
    """A good access token but for what is changed; a claim or header member of None is left out. `name`: of its key."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": now + 300, "iat": now, "scope": "i2moe.predict", **claims}
    payload = {claim: value for claim, value in payload.items() if value is not None}
    told = {"kid": name, "typ": "at+jwt", **(header or {})}
    signed = jwt.PyJWS().encode(
        json.dumps(payload).encode(),
        key or private_key(name),
        told.get("alg", name[:5]),
        headers={member: value for member, value in told.items() if value is not None},
    )
    return str(signed)


@dataclass
class HttpsIssuer:
    """What a server publishes by path, and which paths were asked for."""

    url: str
    certificate: Path
    documents: dict[str, bytes | int | str] = field(default_factory=dict)  # a body, a status, or where to go instead
    asked: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    drip_s: float = 0.0  # before each byte of a body

    def publish(self, *names: str, issuer: str | None = None, jwks_uri: str | None = None) -> None:
        """Keys, and the discovery document that leads to them."""
        found = {"issuer": issuer or self.url, "jwks_uri": jwks_uri or f"{self.url}/keys"}
        self.documents["/.well-known/openid-configuration"] = json.dumps(found).encode()
        self.documents["/keys"] = json.dumps(jwks(*names)).encode()


@contextmanager
def https_issuer(folder: Path) -> Iterator[HttpsIssuer]:
    """A server on 127.0.0.1 with a certificate of its own, in `folder`, which nobody trusts yet."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            time.sleep(issuer.delay_s)
            found = issuer.documents.get(self.path, 404)
            status = found if isinstance(found, int) else 302 if isinstance(found, str) else 200
            body = found if isinstance(found, bytes) else b"{}"
            self.send_response(status)
            if isinstance(found, str):
                self.send_header("Location", found)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for piece in (body[i : i + 1] for i in range(len(body))) if issuer.drip_s else (body,):
                time.sleep(issuer.drip_s)
                self.wfile.write(piece)

        def log_message(self, *_: Any) -> None:
            """Nowhere."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    certificate = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust it hang up
    issuer = HttpsIssuer(f"https://127.0.0.1:{server.server_port}", certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _certificate(folder: Path) -> Path:
    """For 127.0.0.1, signed by itself, with its key in the same file."""
    key, now = private_key("ES256-certificate"), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + private)
    return path
