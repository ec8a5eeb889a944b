from collections.abc import Iterator

import pytest

from tests.fuzz.worker import Worker
from tests.training.runs import one_thread, small_run

__all__ = ["one_thread", "small_run"]


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """The process that reads what is fuzzed."""
    worker = Worker()
    yield worker
    worker.close()
