"""Which bundle to serve: a bundle itself, or of a folder of bundles the pinned version or the newest."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from service.bundle.documents import MAX_JSON_BYTES, parse_json, read_file
from service.bundle.errors import BundleError
from service.bundle.store import MANIFEST_FILE


class Found(NamedTuple):
    """A bundle's folder as it is now; unequal once another bundle is in its place."""

    path: Path  # without symbolic links
    written_ns: int  # when its manifest was written
    bytes: int  # of its manifest


class _Candidate(NamedTuple):
    created: datetime
    version: str
    path: Path


def find_bundle(path: Path, version: str | None = None) -> Found:
    """The bundle at `path`, or of the folders in `path` that hold a manifest the one of `version`, else the last created.

    Whether it is whole is seen when it is opened: one that is not must not hide behind an older one that nobody chose.
    Raises `BundleError` where there is none.
    """
    try:
        if (path / MANIFEST_FILE).is_file():
            return _found(path)
        folders = sorted(child for child in path.iterdir() if (child / MANIFEST_FILE).is_file()) if path.is_dir() else []
    except OSError as error:  # no right to look, or no name that a file can have
        raise BundleError(f"{path}: cannot be looked at ({error.strerror})") from None
    bundles = [child for child in folders if not child.name.startswith(".")]  # those are being written
    if not bundles:
        expected = "a bundle, or a folder of bundles"
        raise BundleError(f"{path}: expected {expected}, found {'no manifest' if path.is_dir() else 'nothing'}")
    candidates = [_candidate(child) for child in bundles]
    if version is not None:
        named = [candidate for candidate in candidates if candidate.version == version]
        if not named:
            found = ", ".join(sorted({candidate.version for candidate in candidates}))
            raise BundleError(f"{path}: expected a bundle of version {version}, found {found}")
        candidates = named
    return _found(max(candidates).path)


def _candidate(path: Path) -> _Candidate:
    """What is read of a manifest to choose by; one that cannot be read is the oldest."""
    try:
        document: Any = parse_json(read_file(path / MANIFEST_FILE, MAX_JSON_BYTES))
        created, version = datetime.fromisoformat(document["created"]), str(document["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return _Candidate(datetime.min.replace(tzinfo=UTC), "unreadable", path)
    return _Candidate(created if created.tzinfo else created.replace(tzinfo=UTC), version, path)


def _found(path: Path) -> Found:
    try:
        real = path.resolve(strict=True)
        status = (real / MANIFEST_FILE).stat()
    except OSError as error:
        raise BundleError(f"{path}: has gone while it was looked at ({error.strerror})") from None
    return Found(real, status.st_mtime_ns, status.st_size)
