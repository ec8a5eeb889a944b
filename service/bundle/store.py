"""The bundle folder on disk: written so that it is either whole or not there, and checked before it is believed.

Layout: ``model.onnx``, ``attribution.onnx`` where there is one, graph and tokenizer of every text encoder, ``reference.json``
(distributions seen on held-out rows, for drift monitoring) and ``manifest.json``, which is written last and names the sha256 of
every other file.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.bundle.documents import MAX_JSON_BYTES, DocumentError, parse_json, read_file
from service.bundle.embedding import encoder_files, find_encoders
from service.bundle.errors import BundleError, and_more, shortened
from service.bundle.manifest import SUPPORTED_FORMAT_VERSIONS, FileInfo, Manifest

MODEL_FILE = "model.onnx"
ATTRIBUTION_FILE = "attribution.onnx"  # optional: the graph that attributes contributions to features
REFERENCE_FILE = "reference.json"
MANIFEST_FILE = "manifest.json"
_CHUNK_BYTES = 1 << 20
_MAX_TOLD = 100  # characters of what was found


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Every file its manifest names was found on disk, byte for byte."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """Where the graph is."""
        return self.path / MODEL_FILE

    @property
    def attribution_path(self) -> Path | None:
        """Where the graph is that attributes contributions to features; None in a bundle without it."""
        return self.path / ATTRIBUTION_FILE if self.manifest.attribution is not None else None

    @property
    def sha256(self) -> str:
        """The identity of the model that is served: the hash of its graph."""
        return self.manifest.files[MODEL_FILE].sha256

    def reference(self) -> dict[str, Any]:
        """The distributions seen on held-out rows. Raises `BundleError` where the file has changed since it was opened."""
        path = self.path / REFERENCE_FILE
        try:
            reference = parse_json(read_file(path, MAX_JSON_BYTES))
        except (DocumentError, OSError) as error:
            raise BundleError(f"{path}: {error}") from None
        if not isinstance(reference, dict):
            raise BundleError(f"{path}: expected a JSON object, found {type(reference).__name__}")
        return reference


def file_info(path: Path) -> FileInfo:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return FileInfo(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def open_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle. Raises `BundleError` with one sentence saying what was expected and what was found.

    Its schema finds text encoders in the folder, and loads one when the first text is to be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path}: expected a bundle folder, found {'a file' if path.exists() else 'nothing'}")
    manifest = _read_manifest(path / MANIFEST_FILE)
    attribution = (ATTRIBUTION_FILE,) if manifest.attribution is not None else ()
    for name in (MODEL_FILE, REFERENCE_FILE, *attribution):
        if name not in manifest.files:
            raise BundleError(f"{path}: the manifest names no {name}")
    for name, sha256 in encoder_files(manifest.features).items():
        found = manifest.files[name].sha256 if name in manifest.files else None
        if found != sha256:
            told = "none" if found is None else f"one with {found[:12]}..."
            raise BundleError(
                f"{path}: expected text encoder file {name} with sha256 {sha256[:12]}..., the manifest names {told}"
            )
    for name, expected in manifest.files.items():
        _check_file(path, name, expected)
    bundle = Bundle(path, manifest.model_copy(update={"features": find_encoders(manifest.features, path)}))
    bundle.reference()  # so that whoever asks for it later gets it
    return bundle


def _read_manifest(path: Path) -> Manifest:
    try:
        text = read_file(path, MAX_JSON_BYTES)
        document = parse_json(text)
    except FileNotFoundError:
        raise BundleError(f"{path.parent}: has no {MANIFEST_FILE}, so it is not a bundle or was not written to the end") from None
    except DocumentError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read as JSON ({type(error).__name__})") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version not in SUPPORTED_FORMAT_VERSIONS:
        expected = ", ".join(map(str, sorted(SUPPORTED_FORMAT_VERSIONS)))
        found = shortened(repr(version), _MAX_TOLD)
        raise BundleError(f"{path}: expected bundle format version {expected}, found {found}; export the model again")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "manifest"
        more = and_more(error.error_count() - 1)
        raise BundleError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}{more}") from None


def _check_file(path: Path, name: str, expected: FileInfo) -> None:
    if Path(name).name != name:
        raise BundleError(f"{path}: the manifest names {name!r}, which is not a plain file name")
    file = path / name
    try:
        if not file.is_file():
            raise BundleError(f"{path}: {name} is missing")
        found = file_info(file)
    except OSError as error:  # a name too long for any file, or no right to read it
        raise BundleError(f"{path}: {name} cannot be read ({error.strerror})") from None
    if found != expected:
        raise BundleError(
            f"{path}: {name} is damaged: expected {expected.bytes} bytes with sha256 {expected.sha256[:12]}..., "
            f"found {found.bytes} bytes with {found.sha256[:12]}..."
        )


@contextmanager
def _staged_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that is renamed to it on success and removed on any failure.

    Raises `BundleError` when something is at `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield staged
        staged.chmod(0o755)
        try:
            staged.rename(out)  # fails when a file or a folder that holds something appeared meanwhile
        except OSError as error:
            raise BundleError(f"{out}: cannot be put there ({error.strerror}); remove it or choose another name") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_bundle(out: Path | str, *, fill: Callable[[Path], None], manifest: Callable[[dict[str, FileInfo]], Manifest]) -> Bundle:
    """Write a bundle to `out`, whole or not at all.

    `fill` writes every file but the manifest into the folder it is given; `manifest` then gets their hashes and answers
    the manifest, which is written last. The folder is opened as a service would open it before it gets its name. Whatever
    is raised on the way is raised, with nothing left behind. Raises `BundleError` when `out` exists already: a bundle is
    never overwritten in place, because a service may be reading it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: already exists; remove it or choose another name")
    with _staged_folder(out) as staged:
        fill(staged)
        files = {file.name: file_info(file) for file in sorted(staged.iterdir())}
        text = manifest(files).model_dump_json(indent=1)
        (staged / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        opened = open_bundle(staged)
    return replace(opened, path=out)
