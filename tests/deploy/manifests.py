"""Kubernetes manifests as a cluster gets them."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.serving import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
Manifest = dict[str, Any]


def load_all(path: Path) -> list[Manifest]:
    """Every document of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@cache
def rendered(folder: str) -> tuple[Manifest, ...]:
    """What kustomize makes of a folder; skips where neither kustomize nor kubectl is installed."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(KUBERNETES / folder)], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            return tuple(document for document in yaml.safe_load_all(done.stdout) if document)
    return pytest.skip("neither kustomize nor kubectl is installed")


def one(manifests: tuple[Manifest, ...], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def config_map(manifests: tuple[Manifest, ...], name: str) -> Manifest:
    """The config map of this name, to which kustomize adds a hash."""
    (found,) = [m for m in manifests if m["kind"] == "ConfigMap" and re.fullmatch(rf"{name}-\w+", m["metadata"]["name"])]
    return found


def environment(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """The settings that the Deployment's pods get, by way of its config map."""
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    (source,) = container["envFrom"]
    settings = config_map(manifests, "i2moe-settings")
    assert source["configMapRef"]["name"] == settings["metadata"]["name"]
    return dict(settings["data"])
