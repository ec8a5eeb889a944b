"""Fixtures for whatever trains: one thread, and finished runs to look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: two modalities, two epochs. Not to be written to."""
    folder = tmp_path_factory.mktemp("small")
    write_data(folder)
    fit(recipe(), folder, folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of a model with every kind of feature. Not to be written to."""
    folder = tmp_path_factory.mktemp("rich")
    write_data(folder)
    fit(recipe(modalities=ALL_MODALITIES), folder, folder / "run")
    return folder / "run"
