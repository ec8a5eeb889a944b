import subprocess
import sys

import pytest

CHECK = """
import importlib, sys
importlib.import_module({module!r})
found = {unwanted!r} & set(sys.modules)
sys.exit(f"loaded {{sorted(found)}}" if found else 0)
"""
OF_TRAINING = {"torch", "onnx", "onnxscript", "sklearn", "polars", "pandas", "training", "export"}


def loads(module: str, unwanted: set[str]) -> bool:
    """Import `module` in a new process and look at what came with it."""
    command = [sys.executable, "-c", CHECK.format(module=module, unwanted=unwanted)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or done.stderr.startswith("loaded"), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("module", ["service.api.service", "service.bundle.__main__", "service.bundle.ray_data"])
def test_the_service_loads_nothing_of_training(module: str) -> None:
    """A new process that imports the service has no torch, onnx, scikit-learn or polars."""
    assert not loads(module, OF_TRAINING)


def test_the_service_over_http_loads_nothing_of_tables() -> None:
    """Only who scores files waits for pyarrow."""
    assert not loads("service.api.service", {"pyarrow"})


def test_this_test_can_fail() -> None:
    """Modules that do import onnx, polars and pyarrow are caught."""
    assert loads("tests.tiny_bundle", {"onnx"})
    assert loads("training.data.tables", {"polars"})
    assert loads("service.bundle.__main__", {"pyarrow"})
