"""`python -m deploy.compose.secrets`: what compose.yaml mounts and nobody else may have: keys, a password, a certificate.

Each is made once; the key for callers is printed, this once. The folder is for its owner alone; the files in it can be read by
all, since each is read by another user of a container.
"""

import secrets
import socket
import sys
from pathlib import Path

from deploy.compose.certificate import make_certificate
from service.access.keys import new_key

FOLDER = Path(__file__).parent / "secrets"
TLS = FOLDER / "tls"  # a folder of its own: I2MOE_TLS may name another


def make_secrets(folder: Path) -> str:
    """Write the files and answer the callers' key. Raises `FileExistsError`, so that no key in use is lost."""
    folder.mkdir(mode=0o700)
    caller, callers_lines = new_key("caller", ["predict", "explain"])
    metrics, metrics_lines = new_key("prometheus", ["metrics"])
    files = {
        "api_keys.toml": callers_lines + metrics_lines,
        "metrics_key": metrics,
        "grafana_password": secrets.token_urlsafe(24),
    }
    for name, text in files.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o444)
    return caller


def main() -> int:
    """Make beside compose.yaml what is not there yet; answers the exit status."""
    if FOLDER.exists() and TLS.exists():
        print(f"error: {FOLDER} is there already; remove it, or {TLS} alone, to make new ones", file=sys.stderr)
        return 1
    if not FOLDER.exists():
        key = make_secrets(FOLDER)
        print(f"wrote {FOLDER}; the callers' key, shown this once: {key}", file=sys.stderr)
    names = ("localhost", "127.0.0.1", socket.gethostname())
    end = make_certificate(TLS, names=names)
    print(
        f"wrote {TLS}: a certificate for {', '.join(names)} until {end:%Y-%m-%d}, which vouches for itself. "
        "Put your own in its place: tls.crt (with those between it and its root) and tls.key.",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
