"""A key and a certificate that vouches for itself, for a proxy that has no other yet.

Clients trust it by its own file (`curl --cacert`). Knows nothing of compose: names and folder are the caller's.
"""

import datetime
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CERTIFICATE, KEY = "tls.crt", "tls.key"  # as in a Kubernetes Secret of type kubernetes.io/tls
VALID_DAYS = 397  # some clients take no certificate that is valid for longer than 398


def make_certificate(folder: Path, *, names: Sequence[str]) -> datetime.datetime:
    """Write tls.crt and tls.key for these host names and addresses; answers when it ends. Raises `FileExistsError`.

    Both can be read by all who can enter the folder above, as the other secrets beside it: the proxy is another user.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key, names)
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files = {
        KEY: key.private_bytes(serialization.Encoding.PEM, *private),
        CERTIFICATE: certificate.public_bytes(serialization.Encoding.PEM),
    }
    folder.mkdir()  # now that there is something to put into it
    folder.chmod(0o755)  # whatever the umask
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o444)
    return certificate.not_valid_after_utc


def _certificate(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> x509.Certificate:
    """For a server alone: with it nobody else can be vouched for, not even by who has its key."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "i2moe")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)  # clients' clocks may be behind
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
