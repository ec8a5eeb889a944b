import subprocess
import sys

import pytest

CHECK = """
import importlib, sys
importlib.import_module({module!r})
heavy = {{"torch", "onnx", "onnxscript", "sklearn", "training", "export"}} & set(sys.modules)
sys.exit(f"loaded {{sorted(heavy)}}" if heavy else 0)
"""


def loads_something_heavy(module: str) -> bool:
    """Import `module` in a new process and look at what came with it."""
    command = [sys.executable, "-c", CHECK.format(module=module)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or done.stderr.startswith("loaded"), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("module", ["service.api.service", "service.bundle.__main__"])
def test_the_service_loads_nothing_of_training(module: str) -> None:
    """A new process that imports the service has no torch, onnx or scikit-learn."""
    assert not loads_something_heavy(module)


def test_this_test_can_fail() -> None:
    """A module that does import onnx is caught."""
    assert loads_something_heavy("tests.tiny_bundle")
