"""Looking whether another bundle is there: what is loaded, what is told, and that the next look has another chance."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.api.loading import Following, Looked
from service.bundle.choose import Found
from service.bundle.errors import BundleError

ONE, TWO = Found(Path("one"), 1, 1), Found(Path("two"), 1, 1)


class Folder:
    """Stands in for a folder of bundles: holds, and raises, what it is told."""

    def __init__(self, *turns: Found | Exception) -> None:
        self._turns = iter(turns)
        self.loaded: list[Path] = []
        self.damaged: set[Path] = set()

    def find(self) -> Found:
        turn = next(self._turns)
        if isinstance(turn, Exception):
            raise turn
        return turn

    async def load(self, path: Path) -> Path:
        self.loaded.append(path)
        if path in self.damaged:
            raise BundleError("damaged")
        return path


def looks(folder: Folder, count: int) -> Sequence[Looked[Path]]:
    """So many looks, one after the other."""

    async def scenario() -> list[Looked[Path]]:
        following = Following(find=folder.find, load=folder.load)
        return [await following.look() for _ in range(count)]

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BundleError("expected a bundle, found nothing"), "expected a bundle, found nothing"),
        (OSError(13, "Permission denied"), "cannot be looked at (Permission denied)"),
        (RuntimeError("can't start new thread"), "cannot be looked at (RuntimeError)"),
    ],
)
def test_whatever_keeps_from_looking_is_told_once_and_the_next_look_goes_on(error: Exception, why: str) -> None:
    """Who looks every second must neither end nor fill the log; what was loaded is not loaded again."""
    folder = Folder(ONE, error, error, ONE, TWO)
    found = looks(folder, 5)
    assert [look.loaded for look in found] == [ONE.path, None, None, None, TWO.path]
    assert [look.is_news for look in found] == [False, True, False, False, False]
    assert why in str(found[1].problem)
    assert found[1].problem == found[2].problem
    assert found[3].problem is None
    assert folder.loaded == [ONE.path, TWO.path]


def test_what_cannot_be_loaded_is_tried_again_when_it_changes_and_told_as_long_as_it_is_there() -> None:
    """Not at every look; when the one before is back, there is no problem any more."""
    folder = Folder(ONE, TWO, TWO, ONE, TWO._replace(written_ns=2))
    folder.damaged = {TWO.path}
    found = looks(folder, 5)
    assert [look.problem for look in found] == [None, "damaged", "damaged", None, "damaged"]
    assert [look.is_news for look in found] == [False, True, False, False, True]
    assert folder.loaded == [ONE.path, TWO.path, TWO.path]


def test_what_was_refused_before_another_was_loaded_is_tried_again() -> None:
    """A bundle that came between is a reason to look, and to say it again."""
    folder = Folder(ONE, TWO, ONE._replace(written_ns=2), TWO)
    folder.damaged = {TWO.path}
    found = looks(folder, 4)
    assert [look.is_news for look in found] == [False, True, False, True]
    assert folder.loaded == [ONE.path, TWO.path, ONE.path, TWO.path]


def test_one_look_at_a_time_loads() -> None:
    """However many ask: the others find that it is done."""

    async def scenario() -> list[Path | None]:
        following = Following(find=lambda: ONE, load=slow)
        return [look.loaded for look in await asyncio.gather(*(following.look() for _ in range(5)))]

    async def slow(path: Path) -> Path:
        await asyncio.sleep(0.01)
        return path

    assert asyncio.run(scenario()).count(ONE.path) == 1
