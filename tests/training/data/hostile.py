"""Pickles that would write a file if anything in them ran, and the ways of smuggling them in."""

import os
import pickle
import zipfile
from pathlib import Path


class RunsCode:
    """Pickled, Python code; unpickled by anyone who runs it, a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


class RunsACommand(RunsCode):
    """The same by way of the shell."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


HOSTILE = (RunsCode, RunsACommand)


def runs(path: Path, marker: Path) -> bool:
    """Does plain unpickling of this file run it? The tests' own proof that a hostile file is one."""
    with path.open("rb") as file:
        pickle.load(file)
    ran = marker.exists()
    marker.unlink(missing_ok=True)
    return ran


def replace_in_zip(path: Path, name_ends: str, content: bytes) -> None:
    """Put other bytes into one entry of a zip file, as torch.save writes them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in entries.items():
            archive.writestr(name, content if name.endswith(name_ends) else old)
