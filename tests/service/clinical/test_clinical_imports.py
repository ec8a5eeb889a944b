"""What is loaded when: nothing heavy with the service, nothing of the web with the adapters."""

import subprocess
import sys

import pytest

CHECK = """
import importlib, sys
importlib.import_module({module!r})
found = set({unwanted!r}) & set(sys.modules)
sys.exit(f"loaded {{sorted(found)}}" if found else 0)
"""
LAZY = ("jwt", "cryptography", "pint", "ucumvert", "lark")


def loaded(module: str, unwanted: tuple[str, ...]) -> bool:
    """Import `module` in a new process, and see whether something unwanted came with it."""
    command = [sys.executable, "-c", CHECK.format(module=module, unwanted=unwanted)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or done.stderr.startswith("loaded"), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("module", ["service.api.service", "service.clinical.routes"])
def test_libraries_of_units_and_tokens_are_loaded_when_they_are_needed(module: str) -> None:
    """The service starts without them; and its routes can be imported before or after it."""
    assert not loaded(module, LAZY)


@pytest.mark.parametrize("module", ["record", "risk_assessment", "cards", "prefetch", "tokens", "settings", "examples"])
def test_adapters_know_nothing_of_the_web(module: str) -> None:
    """They can be used in a program that serves nothing."""
    assert not loaded(f"service.clinical.{module}", ("starlette", "bentoml", "service.api", *LAZY))


def test_this_test_can_fail() -> None:
    """A module that does import the web framework is caught."""
    assert loaded("service.clinical.routes", ("starlette",))
