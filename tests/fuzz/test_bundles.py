"""Bundle folders: manifests, references and folders that are not what a bundle's should be."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from service.bundle.store import MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, file_info
from tests.fuzz.bundles import write_rich_bundle
from tests.fuzz.mutations import json_texts
from tests.fuzz.profile import check, fuzz
from tests.fuzz.worker import Worker
from tests.tiny_attribution import write_attributed_bundle
from tests.tiny_bundle import EXAMPLE, TINY_UNCERTAINTY, tiny_reference, write_tiny_bundle

KINDS = ("attributed", "rich")


def written(path: Path) -> Any:
    """A JSON file's document."""
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A bundle with everything that a manifest may say, and one with every kind of feature; whose manifests may be replaced."""
    folder = tmp_path_factory.mktemp("bundles")
    write_attributed_bundle(folder / "attributed", uncertainty=TINY_UNCERTAINTY)
    write_rich_bundle(folder / "rich")
    (folder / "records.jsonl").write_text(json.dumps(EXAMPLE) + "\n")
    for kind in KINDS:
        shutil.copy(folder / kind / MANIFEST_FILE, folder / f"{kind}.json")
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_any_manifest_is_served_or_refused(bundles: Mapping[str, Path], worker: Worker, kind: str) -> None:
    """A service with whatever manifest answers its example and tells of itself, or says in a line why it does not."""
    folder = bundles[kind]

    @fuzz()
    @given(text=json_texts(written(folder.with_suffix(".json"))))
    def holds(text: bytes) -> None:
        (folder / MANIFEST_FILE).write_bytes(text)
        check(worker.read("serve", folder))

    holds()


@pytest.mark.parametrize("command", ["show", "predict"])
def test_commands_end_in_a_line(bundles: Mapping[str, Path], worker: Worker, command: str) -> None:
    """show and predict of whatever manifest print what they should, or one line and no traceback."""
    folder = bundles["attributed"]
    records, out = folder.with_name("records.jsonl"), folder.with_name("out.jsonl")
    options = [records, "--out", out, "--features", "--provider", "cpu"] if command == "predict" else []

    @fuzz()
    @given(text=json_texts(written(folder.with_suffix(".json"))))
    def holds(text: bytes) -> None:
        (folder / MANIFEST_FILE).write_bytes(text)
        check(worker.read("bundle", command, folder, *options))

    holds()


def test_any_reference_is_served_or_refused(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A reference.json with whatever content and the right hash is told as it stands, or the bundle is refused."""
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("reference") / "bundle")
    manifest = written(bundle.path / MANIFEST_FILE)

    @fuzz(0.5)
    @given(text=json_texts(tiny_reference()))
    def holds(text: bytes) -> None:
        (bundle.path / REFERENCE_FILE).write_bytes(text)
        manifest["files"][REFERENCE_FILE] = file_info(bundle.path / REFERENCE_FILE).model_dump()
        (bundle.path / MANIFEST_FILE).write_text(json.dumps(manifest))
        check(worker.read("serve", bundle.path))

    holds()


def test_one_of_several_bundles_is_chosen(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beside whatever manifests, the bundle that was asked for is found."""
    folder = tmp_path_factory.mktemp("several")
    good = write_tiny_bundle(folder / "good")
    for name in ("other", "third"):
        (folder / name).mkdir()
    documents = json_texts({"version": "2.0.0", "created": "2026-02-01T00:00:00Z"})

    @fuzz(0.5)
    @given(one=documents, two=documents)
    def holds(one: bytes, two: bytes) -> None:
        (folder / "other" / MANIFEST_FILE).write_bytes(one)
        (folder / "third" / MANIFEST_FILE).write_bytes(two)
        answer = worker.read("serve", folder, good.manifest.version)
        check(answer)
        assert b"1.0.0" in one + two or answer.status == 0, answer
        check(worker.read("serve", folder))

    holds()


HAZARDS = ("gone", "empty", "folder", "fifo", "null", "zeros", "loop", "outside", "itself", "long")


def _put(path: Path, hazard: str) -> None:
    path.unlink(missing_ok=True)
    targets = {"null": "/dev/null", "zeros": "/dev/zero", "loop": path, "outside": "/etc/hostname", "itself": path.parent}
    match hazard:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "long":
            path.symlink_to("x" * 250)
        case "gone":
            pass
        case _:
            path.symlink_to(targets[hazard])


@pytest.mark.parametrize("hazard", HAZARDS)
@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE])
def test_what_is_no_file_is_refused(worker: Worker, tmp_path: Path, name: str, hazard: str) -> None:
    """Nothing in place of a file is waited for, read without end, or followed out of the folder."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    _put(bundle.path / name, hazard)
    for answer in (worker.read("serve", bundle.path), worker.read("bundle", "show", bundle.path)):
        check(answer)
        assert answer.status == 1
