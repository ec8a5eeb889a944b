"""Which bundle is served: the one that is named, the last created of several, or the pinned version."""

import json
import os
from pathlib import Path

import pytest

from service.bundle.choose import find_bundle
from service.bundle.errors import BundleError


def bundle(folder: Path, name: str, *, version: str = "1.0.0", created: str = "2026-01-01T00:00:00Z") -> Path:
    """As much of a bundle as is looked at."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"version": version, "created": created}))
    return path


def test_a_bundle_is_itself(tmp_path: Path) -> None:
    """Its folder, or a link to it; another bundle in its place is another."""
    first, second = bundle(tmp_path, "a"), bundle(tmp_path, "b")
    link = tmp_path / "current"
    link.symlink_to(first)
    found = find_bundle(link)
    assert found == find_bundle(first)
    assert found.path == first.resolve()
    link.unlink()
    link.symlink_to(second)
    assert find_bundle(link) != found


def test_a_bundle_that_was_written_anew_is_another(tmp_path: Path) -> None:
    """By the time and size of its manifest."""
    path = bundle(tmp_path, "a")
    before = find_bundle(path)
    os.utime(path / "manifest.json", ns=(1, 1))
    assert find_bundle(path) != before


def test_of_several_the_last_created_is_served(tmp_path: Path) -> None:
    """Whatever their names say; what is still being written and what is no bundle do not count."""
    bundle(tmp_path, "z", created="2026-01-01T00:00:00Z")
    newest = bundle(tmp_path, "a", created="2026-03-01T00:00:00Z")
    bundle(tmp_path, ".b.staged", created="2027-01-01T00:00:00Z")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert find_bundle(tmp_path).path == newest.resolve()


def test_a_pinned_version_is_served_and_no_other(tmp_path: Path) -> None:
    """The last created of that version; without one it is told which there are."""
    old = bundle(tmp_path, "old", version="1.0.0")
    bundle(tmp_path, "new", version="1.1.0", created="2026-02-01T00:00:00Z")
    assert find_bundle(tmp_path, "1.0.0").path == old.resolve()
    with pytest.raises(BundleError, match=r"expected a bundle of version 2\.0\.0, found 1\.0\.0, 1\.1\.0"):
        find_bundle(tmp_path, "2.0.0")


def test_a_manifest_that_cannot_be_read_is_the_oldest(tmp_path: Path) -> None:
    """It does not take over from one that can be; alone it is chosen, and says what is wrong when it is opened."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"created": 17}')
    assert find_bundle(tmp_path).path == broken.resolve()
    good = bundle(tmp_path, "good")
    assert find_bundle(tmp_path).path == good.resolve()


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_where_there_is_none_it_is_told(tmp_path: Path, name: str) -> None:
    """No folder, or one without a bundle."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="expected a bundle, or a folder of bundles"):
        find_bundle(tmp_path / name)


def test_a_path_that_cannot_be_is_told() -> None:
    """A name longer than the system takes is no bundle."""
    with pytest.raises(BundleError, match="cannot be looked at"):
        find_bundle(Path("x" * 5000))
