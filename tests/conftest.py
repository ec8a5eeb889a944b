import os

# Before any test module imports onnxruntime: it reports usage to its maker unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and golden outputs of the released code, kept beside the project and not in it."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"{SHARED} is not there: the golden outputs of the released code are no part of a public clone")
    return SHARED
