"""The bundle on disk: whole or not there, and checked before it is believed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle import store
from service.bundle.errors import BundleError
from service.bundle.manifest import FileInfo, Manifest
from service.bundle.predictor import Predictor
from service.bundle.store import MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, file_info, open_bundle, write_bundle
from tests.tiny_bundle import tiny_manifest, tiny_reference, write_tiny_bundle

BUNDLE_V1 = Path(__file__).parent / "data" / "bundle_v1"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "bundle")


def refusal(path: Path) -> str:
    """The one-line message with which a folder is refused."""
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle's folder, its manifest changed."""
    file = bundle.path / MANIFEST_FILE
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return bundle.path


def test_what_is_written_is_read(bundle: Bundle) -> None:
    """A bundle that was written opens with the same manifest, files and identity."""
    opened = open_bundle(str(bundle.path))
    assert opened == bundle
    assert opened.path == bundle.path
    assert sorted(file.name for file in bundle.path.iterdir()) == [MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE]
    assert opened.model_path == bundle.path / MODEL_FILE
    assert opened.sha256 == file_info(opened.model_path).sha256
    assert opened.reference() == tiny_reference()


def test_a_bundle_moves_with_its_folder(bundle: Bundle, tmp_path: Path) -> None:
    """Nothing in a bundle says where it lies."""
    moved = bundle.path.rename(tmp_path / "elsewhere")
    assert open_bundle(moved).manifest == bundle.manifest


def test_a_folder_of_format_version_1_opens() -> None:
    """A bundle stored when format version 1 was written opens, answers its example, and always will."""
    assert Predictor(open_bundle(BUNDLE_V1), provider="cpu").replay_example() < 1e-5


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A missing path and a file are no bundles."""
    assert "expected a bundle folder, found nothing" in refusal(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "expected a bundle folder, found a file" in refusal(tmp_path / "file")


def test_a_folder_without_manifest_is_refused(bundle: Bundle) -> None:
    """The manifest is written last, so without one the bundle is not whole."""
    (bundle.path / MANIFEST_FILE).unlink()
    assert "has no manifest.json" in refusal(bundle.path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000], ids=["empty", "cut", "binary", "nested"])
def test_a_manifest_that_is_no_json_is_refused(bundle: Bundle, text: bytes) -> None:
    """A damaged manifest is one sentence, not a traceback."""
    (bundle.path / MANIFEST_FILE).write_bytes(text)
    assert "cannot be read as JSON" in refusal(bundle.path)


@pytest.mark.parametrize("version", [0, 99, "1", 1.0, True, None, [], {"x": 1}], ids=repr)
def test_another_format_version_is_refused(bundle: Bundle, version: Any) -> None:
    """A service opens the format versions it knows and says what to do about others."""
    edit(bundle, lambda document: document.update(format_version=version))
    assert f"expected bundle format version 1, 2, 3, found {version!r}; export the model again" in refusal(bundle.path)


@pytest.mark.parametrize("document", ["[]", "1", "null", "{}"])
def test_a_manifest_without_format_version_is_refused(bundle: Bundle, document: str) -> None:
    """Another JSON document is no manifest."""
    (bundle.path / MANIFEST_FILE).write_text(document)
    assert "expected bundle format version 1, 2, 3, found None" in refusal(bundle.path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(surprise=1), "manifest.json: surprise: Extra inputs are not permitted"),
        (lambda d: d.pop("task"), "task: Field required"),
        (lambda d: d["task"].update(kind="guess"), "task.kind: Input should be 'binary', 'multiclass', 'multilabel' or"),
        (
            lambda d: d["graph"]["inputs"][0].update(name="lab"),
            "manifest.json: manifest: graph inputs [('lab', 2), ('history', 2)] differ",
        ),
        (lambda d: (d.pop("name"), d.pop("version")), "name: Field required (and 1 more problem)"),
    ],
    ids=["extra", "missing", "unknown", "inputs", "two"],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle: Bundle, change: Callable[[dict[str, Any]], object], words: str) -> None:
    """The message names the first place that is wrong and how many more there are."""
    assert words in refusal(edit(bundle, change))


def test_a_truncated_file_is_refused(bundle: Bundle) -> None:
    """The message tells expected and found sizes."""
    whole = bundle.model_path.read_bytes()
    bundle.model_path.write_bytes(whole[:-1])
    assert f"model.onnx is damaged: expected {len(whole)} bytes" in refusal(bundle.path)
    assert f"found {len(whole) - 1} bytes" in refusal(bundle.path)


@pytest.mark.parametrize("name", [MODEL_FILE, REFERENCE_FILE])
def test_one_altered_bit_is_refused(bundle: Bundle, name: str) -> None:
    """Every file is compared with its hash."""
    content = bytearray((bundle.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.path / name).write_bytes(content)
    assert f"{name} is damaged" in refusal(bundle.path)


def test_a_missing_file_is_refused(bundle: Bundle) -> None:
    """Every file that the manifest names must be there."""
    (bundle.path / REFERENCE_FILE).unlink()
    assert "reference.json is missing" in refusal(bundle.path)


@pytest.mark.parametrize("name", [MODEL_FILE, REFERENCE_FILE])
def test_a_manifest_that_does_not_name_a_file_is_refused(bundle: Bundle, name: str) -> None:
    """A graph without a hash is not believed."""
    edit(bundle, lambda document: document["files"].pop(name))
    assert f"the manifest names no {name}" in refusal(bundle.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", ".", "..", ""])
def test_a_file_outside_the_folder_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    """A manifest cannot make a service read other files."""
    (tmp_path / "outside").write_text("x")
    info = file_info(tmp_path / "outside").model_dump()
    edit(bundle, lambda document: document["files"].update({name: info}))
    assert "which is not a plain file name" in refusal(bundle.path) or "is missing" in refusal(bundle.path)


def good_fill(folder: Path) -> None:
    """Both files of a bundle."""
    for name in (MODEL_FILE, REFERENCE_FILE):
        (folder / name).write_text("{}")


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    """While files are filled in and hashed there is neither a manifest nor the final folder."""
    out, seen = tmp_path / "bundle", []

    def manifest(files: dict[str, FileInfo]) -> Manifest:
        seen.append((sorted(files), out.exists(), sorted(p.name for p in next(tmp_path.iterdir()).iterdir())))
        return tiny_manifest(files)

    bundle = write_bundle(out, fill=good_fill, manifest=manifest)
    assert seen == [([MODEL_FILE, REFERENCE_FILE], False, [MODEL_FILE, REFERENCE_FILE])]
    assert bundle.path == out
    assert list(tmp_path.iterdir()) == [out]
    assert out.stat().st_mode & 0o777 == 0o755


def raise_error(*_: object) -> Any:
    """An export that fails."""
    raise ArithmeticError("parity")


@pytest.mark.parametrize(
    ("fill", "manifest", "error"),
    [
        (raise_error, tiny_manifest, ArithmeticError),
        (good_fill, raise_error, ArithmeticError),
        (lambda folder: (folder / MODEL_FILE).touch(), tiny_manifest, BundleError),
        (lambda folder: (good_fill(folder), (folder / MANIFEST_FILE).touch()), tiny_manifest, BundleError),
        (good_fill, lambda files: tiny_manifest(files).model_copy(update={"format_version": 99}), BundleError),
        (good_fill, lambda _: tiny_manifest({}), BundleError),
    ],
    ids=["fill raises", "manifest raises", "no reference", "own manifest", "unreadable version", "hashes left out"],
)
def test_a_failed_export_leaves_nothing(tmp_path: Path, fill: Any, manifest: Any, error: type[Exception]) -> None:
    """Whatever goes wrong, also a bundle that could not be opened again, there is no folder and no rest of one."""
    with pytest.raises(error):
        write_bundle(tmp_path / "bundle", fill=fill, manifest=manifest)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_never_overwritten(bundle: Bundle) -> None:
    """A service may be reading it."""
    before = bundle.path.stat().st_mtime_ns
    with pytest.raises(BundleError, match="already exists; remove it or choose another name"):
        write_tiny_bundle(bundle.path)
    assert before == bundle.path.stat().st_mtime_ns
    assert list(bundle.path.parent.iterdir()) == [bundle.path]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    """A file of that name stays."""
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(BundleError, match="already exists"):
        write_tiny_bundle(tmp_path / "bundle")
    assert (tmp_path / "bundle").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """A mounted or prepared empty folder is a good place, and missing parents are made."""
    (tmp_path / "bundle").mkdir()
    assert write_tiny_bundle(tmp_path / "bundle").path == tmp_path / "bundle"
    assert write_tiny_bundle(tmp_path / "deep" / "er" / "bundle").manifest.name == "tiny"


def test_of_two_exports_to_one_place_the_second_is_refused(tmp_path: Path) -> None:
    """A bundle that appeared while another was written stays as it is."""
    out = tmp_path / "bundle"

    def fill(folder: Path) -> None:
        good_fill(folder)
        write_tiny_bundle(out)

    with pytest.raises(BundleError, match="cannot be put there"):
        write_bundle(out, fill=fill, manifest=tiny_manifest)
    assert open_bundle(out).manifest.name == "tiny"
    assert list(tmp_path.iterdir()) == [out]


def test_large_files_are_hashed_in_pieces(tmp_path: Path) -> None:
    """The hash of a file of several chunks is the hash of its bytes."""
    import hashlib

    content = bytes(range(256)) * (store._CHUNK_BYTES // 128)
    (tmp_path / "x").write_bytes(content)
    assert file_info(tmp_path / "x") == FileInfo(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def test_a_bundle_on_a_read_only_copy_opens(bundle: Bundle, tmp_path: Path) -> None:
    """Opening writes nothing."""
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    copy.chmod(0o555)
    assert open_bundle(copy).manifest == bundle.manifest
    copy.chmod(0o755)


@pytest.mark.parametrize("text", ["[]", "{", '{"edges": NaN}', "1e999", "[" * 100_000], ids=["list", "cut", "nan", "inf", "deep"])
def test_a_reference_that_is_no_document_is_refused(bundle: Bundle, text: str) -> None:
    """Found when a bundle is opened, not when somebody asks for what it holds, though its hash is right."""
    (bundle.path / REFERENCE_FILE).write_text(text)
    info = file_info(bundle.path / REFERENCE_FILE).model_dump()
    assert "reference.json: " in refusal(edit(bundle, lambda document: document["files"].update({REFERENCE_FILE: info})))


def test_a_manifest_that_never_ends_is_refused(bundle: Bundle) -> None:
    """A pipe in its place is not waited for."""
    (bundle.path / MANIFEST_FILE).unlink()
    os.mkfifo(bundle.path / MANIFEST_FILE)
    assert "manifest.json: is no regular file" in refusal(bundle.path)


def test_a_name_that_no_file_can_have_is_refused(bundle: Bundle) -> None:
    """A name longer than the system takes is told as one."""
    info = {"sha256": "0" * 64, "bytes": 0}
    assert "cannot be read (File name too long)" in refusal(edit(bundle, lambda d: d["files"].update({"x" * 5000: info})))


def test_a_message_holds_little_of_a_manifest(bundle: Bundle) -> None:
    """A version of a million characters and a key of several lines are told in one short line."""
    assert len(refusal(edit(bundle, lambda document: document.update(format_version="x" * 1_000_000)))) < 1100
    edit(bundle, lambda document: document.update(format_version=3))
    assert "a b: Extra inputs" in refusal(edit(bundle, lambda document: document.update({"a\nb": 1})))
