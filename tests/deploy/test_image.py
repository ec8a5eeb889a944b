"""The trial of the image: it confines the container as the deployments do, looks at the right things, and can say no."""

import copy
import dataclasses
import json
import os
import py_compile
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.image import probe
from deploy.image.__main__ import trial, try_image, unpacked
from deploy.image.checks import USER, problems, stopped
from deploy.image.engine import LOCKED, STOP_S, TMP, Engine, EngineError, Image
from tests.deploy.manifests import one, rendered
from tests.serving import ROOT

LABELS = {f"org.opencontainers.image.{name}": "x" for name in ("title", "description", "version", "revision", "licenses")}
IMAGE = Image(name="i2moe-service:cpu", user="10001", labels=LABELS, health=("true",), stop_signal="SIGTERM")
CONFINED = {
    "command": "python",
    "uids": [USER],
    "capabilities": dict.fromkeys(("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"), 0),
    "no_new_privs": 1,
    "seccomp": 2,
    "resident_mb": 100.0,
}
PREDICTED = {"status": "ok", "probabilities": {"alive": 0.7827, "dead": 0.2173}}
FOUND: dict[str, Any] = {
    "answers": {
        "/livez": {"status": 200, "body": None},
        "/readyz": {"status": 200, "body": None},
        "/metrics": {"status": 200, "body": None},
        "/model": {"status": 200, "body": {"example": {"answer": {"prediction": [0.78269, 0.21731]}}}},
        "/predict": {"status": 200, "body": {"model": {"name": "tiny"}, "predictions": [PREDICTED]}},
        "num_series": 3,
    },
    "files": {"parquet": 1, "csv": 1},
    "processes": [CONFINED],
    "mounts": {
        "/": {"read_only": True, "noexec": False},
        "/tmp": {"read_only": False, "noexec": True},
        "/bundle": {"read_only": True, "noexec": False},
    },
    "runs_from_tmp": False,
    "size_mb": 600.0,
    "parts_mb": {"base": 120.0},
    "writable": ["/dev/shm", "/tmp", "/tmp/bentoml"],
    "setuid": [],
    "num_uncompiled": 0,
    "tools": [],
    "unresolved_cuda": None,
}
NO_DRIVER = "libcuda.so.1: cannot open shared object file: No such file or directory"


def with_value(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """FOUND with another value at `path`."""
    found = copy.deepcopy(FOUND)
    place: Any = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return found


@pytest.mark.parametrize("unresolved", [None, NO_DRIVER])
def test_an_image_that_keeps_its_promises_has_no_problem(unresolved: str | None) -> None:
    """Neither has one with CUDA on a machine without a driver."""
    assert problems(IMAGE, {**FOUND, "unresolved_cuda": unresolved}) == []
    assert stopped(0, 1.5) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("answers", "/readyz", "status"), 503, "/readyz answered 503"),
        (("answers", "/predict", "status"), 500, "/predict answered 500"),
        (("answers", "/predict", "body", "predictions", 0, "status"), "error", "status 'error'"),
        (("answers", "/predict", "body", "predictions", 0, "probabilities", "dead"), 0.3, "0.0827 from the bundle's own"),
        (("answers", "num_series"), 0, "no series"),
        (("files", "parquet"), "No module named 'pyarrow.fs'", "into parquet gave .*pyarrow.fs"),
        (("processes", 0, "uids"), [0], r"runs as \[0\]"),
        (("processes", 0, "capabilities", "CapBnd"), 1, "capabilities in CapBnd"),
        (("processes", 0, "no_new_privs"), 0, "may gain privileges"),
        (("processes", 0, "seccomp"), 0, "without a seccomp filter"),
        (("mounts", "/", "read_only"), False, "^/ can be written"),
        (("mounts", "/bundle", "read_only"), False, "^/bundle can be written"),
        (("mounts", "/tmp", "noexec"), False, "started from /tmp"),
        (("runs_from_tmp",), True, "in /tmp was started"),
        (("writable",), ["/tmp", "/var/tmp"], r"can write /var/tmp \(1 in all\)"),
        (("size_mb",), 701.0, "701 MB unpacked, expected 700"),
        (("setuid",), ["/usr/bin/su"], "/usr/bin/su"),
        (("tools",), ["/usr/bin/gcc"], "/usr/bin/gcc"),
        (("num_uncompiled",), 2, "2 modules"),
        (("unresolved_cuda",), "libcublas.so.13: cannot open", "libcublas"),
    ],
)
def test_every_broken_promise_is_told(path: tuple[str | int, ...], value: object, told: str) -> None:
    """One sentence for each, with what was found."""
    (problem,) = problems(IMAGE, with_value(path, value))
    assert re.search(told, problem)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"user": ""}, "user is ''"),
        ({"user": "0:0"}, "user is '0:0'"),
        ({"stop_signal": "SIGKILL"}, "SIGKILL"),
        ({"health": ()}, "no health check"),
        ({"labels": LABELS | {"org.opencontainers.image.revision": ""}}, "absent: revision"),
    ],
)
def test_what_an_image_says_of_itself_is_checked(change: dict[str, Any], told: str) -> None:
    """Its user, how it is stopped, its health check and its labels."""
    (problem,) = problems(dataclasses.replace(IMAGE, **change), FOUND)
    assert told in problem


def test_cuda_may_be_larger() -> None:
    """The CUDA libraries alone have two gigabytes."""
    cuda = dataclasses.replace(IMAGE, labels=LABELS | {"org.i2moe.accelerator": "cuda"})
    assert problems(cuda, {**FOUND, "size_mb": 3000.0}) == []
    assert len(problems(cuda, {**FOUND, "size_mb": 5000.0})) == 1


def test_a_late_or_failed_stop_is_told() -> None:
    """137 is what a container that had to be killed leaves."""
    assert len(stopped(137, 40.0)) == 2
    assert stopped(1, 1.0) == ["the exit status at SIGTERM was 1, expected 0"]


def test_the_container_is_confined_as_it_will_be() -> None:
    """The same limits as in the compose project and in a pod, and the pod's grace."""
    compose = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())["services"]["i2moe"]
    options = dict(option.removeprefix("--").partition("=")[::2] for option in (*LOCKED, TMP))
    assert options["memory"] == compose["mem_limit"]
    assert int(options["pids-limit"]) == compose["pids_limit"]
    assert options["cap-drop"] == compose["cap_drop"][0]
    (tmpfs,) = compose["tmpfs"]
    flags = set(tmpfs.partition(":")[2].split(",")) - {"mode=1777"}
    assert set(options["tmpfs"].partition(":")[2].split(",")) == flags | {"rw"}
    pod = one(rendered("base"), "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == STOP_S
    assert pod["containers"][0]["resources"]["limits"]["memory"] == options["memory"].replace("g", "Gi")


def test_the_probe_sees_what_is_in_an_image(tmp_path: Path) -> None:
    """Sizes by package, a file that runs as another user, a module that is not compiled or is older than its source."""
    package = tmp_path / "opt/venv/lib/python3.11/site-packages/large"
    package.mkdir(parents=True)
    (package / "data.bin").write_bytes(bytes(6_000_000))
    (package / "again.bin").hardlink_to(package / "data.bin")
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "library").write_bytes(bytes(7_000_000))
    (tmp_path / "usr" / "su").touch()
    (tmp_path / "usr" / "su").chmod(0o4755)
    for name in ("compiled", "stale", "never"):
        (package / f"{name}.py").write_text("x = 1\n")
    for name in ("compiled", "stale"):
        py_compile.compile(str(package / f"{name}.py"), doraise=True)
    (package / "stale.py").write_text("x = 100\n")
    found = probe.contents(tmp_path)
    assert found["parts_mb"] == {"base": 7.0, "large": 6.0}
    assert found["setuid"] == [str(tmp_path / "usr" / "su")]
    assert found["num_uncompiled"] == 2
    assert str(tmp_path) in found["writable"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_the_probe_reads_a_process() -> None:
    """This one: its user, its memory, and capabilities in every set that the kernel has."""
    found = probe.process(Path("/proc/self"))
    assert found.keys() == CONFINED.keys()
    assert found["capabilities"].keys() == CONFINED["capabilities"].keys()
    assert found["uids"] == [os.getuid()]
    assert found["resident_mb"] > 10


ENGINE = """#!{python}
import json, pathlib, sys
with pathlib.Path("{log}").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads(pathlib.Path("{answers}").read_text())
command = sys.argv[1] if sys.argv[1] != "exec" or "--interactive" not in sys.argv else "wait" if "wait" in sys.argv else "look"
status, text = answers.get(command, (0, ""))
print(text)
raise SystemExit(status)
"""


class FakeEngine:
    """A container engine that writes down what it is told and answers what the test says."""

    def __init__(self, folder: Path, **answers: tuple[int, str]) -> None:
        described = {
            "Config": {"User": "10001", "Labels": LABELS, "StopSignal": "SIGTERM", "Healthcheck": {"Test": ["CMD", "ask"]}}
        }
        usual = {"image": (0, json.dumps([described])), "look": (0, json.dumps(FOUND)), "inspect": (0, "0")}
        refused = (0, json.dumps({"error": "I2MOE_REQUIRE_GPU is set"}))
        (folder / "answers").write_text(json.dumps({"wait": refused, **usual, **answers}))
        program, self._log = folder / "docker", folder / "log"
        program.write_text(ENGINE.format(python=sys.executable, log=self._log, answers=folder / "answers"))
        program.chmod(0o755)
        self.engine = Engine(str(program))

    @property
    def told(self) -> list[list[str]]:
        """The arguments of every call."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def test_a_trial_runs_the_health_check_and_leaves_no_container(tmp_path: Path) -> None:
    """Two containers are made, the second to be refused, and both are removed."""
    fake = FakeEngine(tmp_path)
    figures, broken = try_image(fake.engine, image="i2moe-service:cpu", bundle=tmp_path, bundle_image=None)
    assert broken == []
    assert figures["without_gpu"] == "I2MOE_REQUIRE_GPU is set"
    assert figures["model"] == {"name": "tiny"}
    created = [arguments[1].removeprefix("--name=") for arguments in fake.told if arguments[0] == "create"]
    removed = [arguments[-1] for arguments in fake.told if arguments[0] == "rm"]
    assert len(created) == 2
    assert created == removed
    assert ["exec", created[0], "ask"] in fake.told
    assert all(set(LOCKED) < set(arguments) for arguments in fake.told if arguments[0] == "create")


def test_a_failed_health_check_ends_the_trial_and_the_container(tmp_path: Path) -> None:
    """The engine's own words are told."""
    fake = FakeEngine(tmp_path, exec=(1, "connection refused"))
    with pytest.raises(EngineError, match="connection refused"):
        trial(fake.engine, "i2moe-service:cpu", tmp_path)
    assert fake.told[-1][:2] == ["rm", "--force"]


def test_a_container_that_had_to_be_killed_is_a_problem(tmp_path: Path) -> None:
    """Its exit status says so."""
    fake = FakeEngine(tmp_path, inspect=(0, "137"))
    figures, broken = trial(fake.engine, "i2moe-service:cpu", tmp_path)
    assert figures["stop_status"] == 137
    assert broken == ["the exit status at SIGTERM was 137, expected 0"]


def test_a_bundles_image_that_lacks_a_file_is_told(tmp_path: Path) -> None:
    """The copy is compared with the bundle byte for byte; here nothing was copied."""
    bundle, target = tmp_path / "bundle", tmp_path / "to"
    bundle.mkdir()
    target.mkdir()
    (bundle / "manifest.json").touch()
    (problem,) = unpacked(FakeEngine(tmp_path).engine, "i2moe-bundle:1.0.0", bundle, target)
    assert "manifest.json" in problem
