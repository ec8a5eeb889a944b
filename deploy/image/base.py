"""`python -m deploy.image.base`: stand-ins for python:3.11-slim and busybox, for machines that reach no registry.

Debian 12 with its own Python 3.11 by debootstrap, and Debian's static busybox alone. Needs root, `debootstrap` and a mirror
that apt knows. Good for trying the images, not for serving: nothing here follows security updates.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

SUITE = "bookworm"
PYTHON_TAG = "i2moe-base:python"
BUSYBOX_TAG = "i2moe-base:busybox"
# What a slim image leaves out, too. A device node cannot be imported everywhere, and engines make their own.
_LEFT_OUT = (
    *(f"./usr/share/{name}/*" for name in ("doc", "info", "locale", "man")),
    *("./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*", "./dev/*", "./tmp/*"),
)


def import_root(root: Path, *, tag: str, engine: str) -> None:
    """Make the tree at `root` an image of one layer."""
    pack = ["tar", "-C", str(root), "--numeric-owner", *(f"--exclude={path}" for path in _LEFT_OUT), "-cf", "-", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packed:
        subprocess.run([engine, "import", "-", tag], stdin=packed.stdout, check=True)
    if packed.returncode:
        raise subprocess.CalledProcessError(packed.returncode, pack)


def make_python(root: Path) -> None:
    """Debian's smallest system with Python, venv and certificates."""
    packages = "--include=ca-certificates,python3,python3-venv"
    subprocess.run(["debootstrap", "--variant=minbase", packages, SUITE, str(root)], check=True)


def make_busybox(root: Path) -> None:
    """The static busybox under the names of its commands, and a /tmp."""
    subprocess.run(["apt-get", "download", "--quiet", "busybox-static"], cwd=root, check=True)
    (package,) = root.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    package.unlink()
    (root / "tmp").mkdir(mode=0o777)
    subprocess.run(["chroot", str(root), "/bin/busybox", "--install", "-s", "/bin"], check=True)


def main() -> None:
    """Make both and tell their names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="podman", help="docker or podman")
    engine = parser.parse_args().engine
    for tag, make in ((PYTHON_TAG, make_python), (BUSYBOX_TAG, make_busybox)):
        with tempfile.TemporaryDirectory(prefix="i2moe-base-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o755)  # it becomes the image's root, which every user must be able to enter
            make(Path(folder))
            import_root(Path(folder), tag=tag, engine=engine)
    print(f"made {PYTHON_TAG} and {BUSYBOX_TAG}")


if __name__ == "__main__":
    main()
