"""`python -m deploy.compose.secrets`: the secrets that compose.yaml mounts, made once. Prints the key for callers, this once.

The folder is for its owner alone; the files in it can be read by all, since each is read by another user of a container.
"""

import secrets
import sys
from pathlib import Path

from service.access.keys import new_key

FOLDER = Path(__file__).parent / "secrets"


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
    """Make them beside compose.yaml; answers the exit status."""
    try:
        key = make_secrets(FOLDER)
    except FileExistsError:
        print(f"error: {FOLDER} is there already; remove it to make new secrets", file=sys.stderr)
        return 1
    print(f"wrote {FOLDER}; the callers' key, shown this once: {key}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
