"""The files around the code agree with it and with each other."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)$")


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: str) -> dict[str, str]:
    """The pinned versions of a requirements file; every line that is not a comment must be a pin."""
    lines = [line for line in Path(path).read_text().splitlines() if line and not line.startswith("#")]
    matches = [PIN.match(line) for line in lines]
    assert None not in matches
    return {normal(match[1]): match[2] for match in matches if match}


def dependencies() -> list[str]:
    """The service's own dependencies, by name."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return [normal(re.split(r"[\[<>=; ]", dependency)[0]) for dependency in project["dependencies"]]


def test_the_services_environment_is_pinned_whole() -> None:
    """requirements.txt pins every dependency of the service, at the versions of constraints.txt."""
    service, everything = pins("requirements.txt"), pins("constraints.txt")
    assert set(dependencies()) <= set(service)
    assert {name: version for name, version in service.items() if everything.get(name) != version} == {}


def hashed_pins(path: str) -> dict[str, str]:
    """The pinned versions of a file in which every pin must say which files it may be installed from."""
    text = Path(path).read_text()
    hashed = re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text)
    assert len(hashed) == text.count("==")
    return {normal(name): version for name, version, _ in hashed}


def test_every_pin_has_hashes() -> None:
    """requirements.hashes.txt is requirements.txt, and each pin says which files it may be installed from (`make hashes`)."""
    assert hashed_pins("requirements.hashes.txt") == pins("requirements.txt")


def test_the_cuda_libraries_are_pinned_and_fit_onnxruntime() -> None:
    """Each has hashes too, is none of the service's own pins, and is of the version that onnxruntime-gpu's extras ask for."""
    cuda = hashed_pins("requirements.cuda.hashes.txt")
    assert cuda.keys().isdisjoint(pins("requirements.txt"))
    extras = [Requirement(line) for line in requires("onnxruntime-gpu") or []]
    asked = [one for one in extras for extra in ("cuda", "cudnn") if one.marker and one.marker.evaluate({"extra": extra})]
    nvidia = [one for one in asked if one.name.startswith("nvidia")]
    assert nvidia
    assert [str(one) for one in nvidia if cuda[normal(one.name)] not in one.specifier] == []


def test_the_services_environment_has_no_torch() -> None:
    """Neither torch nor any other training library is installed with the service, and only one onnxruntime."""
    service = set(pins("requirements.txt"))
    assert service.isdisjoint({"torch", "onnx", "onnxscript", "scikit-learn", "scipy", "lightgbm", "onnxruntime"})


def test_no_registry_is_named() -> None:
    """Dependency files name packages, never hosts: which index serves them is the machine's business."""
    for path in (
        "requirements.txt",
        "requirements.hashes.txt",
        "requirements.cuda.hashes.txt",
        "constraints.txt",
        "pyproject.toml",
        "Dockerfile",
        "Makefile",
        "bentofile.yaml",
    ):
        assert re.search(r"index[-_]url|https?://(?!127\.0\.0\.1)", Path(path).read_text()) is None, path


def test_versions_agree() -> None:
    """The changelog's newest released version is the package's, or everything is still unreleased."""
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    released = re.findall(r"^## (\d+\.\d+\.\d+)", Path("CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert not released or released[0] == version


def test_ci_runs_the_readmes_test_command() -> None:
    """.ci/run calls the README's own commands and nothing of one machine."""
    commands = [line for line in Path(".ci/run").read_text().splitlines() if line.startswith("make")]
    assert commands == ["make check", "make test"]


def test_dockerfile_is_safe_by_default() -> None:
    """The image runs as a numeric non-root user, checks its health, and packs the service and its requirements only."""
    text = Path("Dockerfile").read_text()
    assert re.search(r"^USER [1-9]\d*$", text, flags=re.MULTILINE)
    assert "HEALTHCHECK" in text
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE)
    assert copied == ["requirements.hashes.txt requirements.cuda.hashes.txt", "service"]
    installs = re.findall(r"pip install .+", text)
    assert [line for line in installs if "--require-hashes" not in line or "--only-binary :all:" not in line] == []
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text + Path("Makefile").read_text()))
    assert labels == {"title", "description", "version", "revision", "licenses"}


def test_bentofile_packs_the_service_alone() -> None:
    """The Bento holds the service and its pinned requirements, and is built without locking, so without a network."""
    bento = yaml.safe_load(Path("bentofile.yaml").read_text())
    assert bento["include"] == ["service/**/*.py", "service/py.typed", "service/static/*", "requirements.txt"]
    assert bento["python"] == {"requirements_txt": "requirements.txt", "lock_packages": False}


@pytest.mark.slow
def test_a_bento_is_built_without_a_network(tmp_path: Path) -> None:
    """`bentoml build` works where no index can be reached, and packs what the Dockerfile does: the service, at the same pins."""
    environment = {
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "1",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "UV_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    source = next(tmp_path.glob("bentos/i2moe-service/*/src"))
    packed = {path.relative_to(source) for path in source.rglob("service/**/*") if path.is_file()}
    assert packed == {path for path in Path("service").rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert pins(str(source.parent / "env" / "python" / "requirements.txt")) == hashed_pins("requirements.hashes.txt")
