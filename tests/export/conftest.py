import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.__main__ import main
from service.bundle.store import Bundle, open_bundle
from tests.training.small_data import ALL_MODALITIES, recipe, write_data
from training.run import fit


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small models are fastest, and their sums always the same, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of a model with every kind of feature. Not to be written to."""
    folder = tmp_path_factory.mktemp("rich")
    write_data(folder)
    fit(recipe(modalities=ALL_MODALITIES), folder, folder / "run")
    return folder / "run"


@dataclass(frozen=True, slots=True)
class Exported:
    """What one call of the command line left and said."""

    status: int
    told: str
    out: Path


@pytest.fixture(scope="session")
def exported(rich_run: Path) -> Exported:
    """`python -m export RUN --out BUNDLE --target cuda`, once for all tests."""
    out = rich_run.parent / "deep" / "bundle"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        status = main([str(rich_run), "--out", str(out), "--target", "cuda"])
    return Exported(status, told.getvalue(), out)


@pytest.fixture(scope="session")
def rich_bundle(exported: Exported) -> Bundle:
    """The same run, exported. Not to be written to."""
    return open_bundle(exported.out)
