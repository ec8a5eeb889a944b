"""Shared by the clinical tests: the tiny bundle with LOINC codes, and a client of a service of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.api.conftest import _no_settings  # noqa: F401 - an autouse fixture
from tests.service.api.in_process import Client, serving
from tests.service.clinical.clinical_bundle import write_clinical_bundle
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def clinical_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny bundle whose features have LOINC codes."""
    return write_clinical_bundle(tmp_path_factory.mktemp("bundles") / "clinical")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny bundle, whose features say nothing of FHIR."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="module")
def client(clinical_path: Path) -> Iterator[Client]:
    """A client of an application that serves it."""
    with serving(clinical_path) as client:
        yield client
