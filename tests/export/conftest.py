import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.__main__ import main
from service.bundle.store import Bundle, open_bundle
from tests.training.runs import one_thread, rich_run

__all__ = ["one_thread", "rich_run"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What one call of the command line left and said."""

    status: int
    told: str
    out: Path


@pytest.fixture(scope="session")
def exported(rich_run: Path) -> Exported:
    """`python -m export RUN --out BUNDLE --target cuda` without an attribution graph, once for all tests."""
    out = rich_run.parent / "deep" / "bundle"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        status = main([str(rich_run), "--out", str(out), "--target", "cuda", "--attribution-points", "0"])
    return Exported(status, told.getvalue(), out)


@pytest.fixture(scope="session")
def rich_bundle(exported: Exported) -> Bundle:
    """The same run, exported. Not to be written to."""
    return open_bundle(exported.out)
