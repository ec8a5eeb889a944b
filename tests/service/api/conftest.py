"""Shared by the API's tests: bundles on disk, an environment without I2MOE_* variables, a client."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.api.in_process import Client, serving
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("I2MOE_", "PROMETHEUS_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny bundle."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="session")
def poisoned_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny bundle that fails on `POISON`."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "poisoned", poisoned=True).path


@pytest.fixture(scope="module")
def client(tiny_path: Path) -> Iterator[Client]:
    """A client of an application that serves the tiny bundle."""
    with serving(tiny_path) as client:
        yield client
