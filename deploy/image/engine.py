"""docker or podman, by the commands that both have: look at an image, run a container as deploy/compose does, stop it."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.py")
STOP_S = 40  # the grace of a pod
# As deploy/compose and deploy/kubernetes/base have it, and no network at all. The user is the image's own.
LOCKED = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"),
    *("--memory=1g", "--pids-limit=256", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"),
)
TMP = "--tmpfs=/tmp:rw,noexec,nosuid,nodev,size=256m"


class EngineError(Exception):
    """The engine refused a command, or what ran in the container failed; the text is its own."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine by the name of its program."""

    program: str

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """What a command prints. Raises `EngineError` with its complaint."""
        done = subprocess.run([self.program, *arguments], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            told = (done.stdout + done.stderr).strip()
            raise EngineError(f"{self.program} {arguments[0]} ended with status {done.returncode}: {told}")
        return done.stdout

    @property
    def locks(self) -> tuple[str, ...]:
        """How a container is locked. podman adds writable folders of its own to a read-only root, unless it is told."""
        return (*LOCKED, "--read-only-tmpfs=false") if Path(self.program).name == "podman" else LOCKED

    def image(self, name: str) -> "Image":
        """The image's description."""
        (found,) = json.loads(self("image", "inspect", name))
        config = found["Config"]
        health = config.get("Healthcheck") or found.get("Healthcheck") or {}
        return Image(
            name=name,
            user=config.get("User", ""),
            labels=config.get("Labels") or {},
            health=tuple(health.get("Test", ())[1:]),
            stop_signal=config.get("StopSignal", ""),
        )

    def run(self, image: str, *options: str, command: tuple[str, ...] = ()) -> str:
        """Run a locked container to its end; what it printed."""
        return self("run", "--rm", *self.locks, *options, image, *command)

    @contextmanager
    def service(self, image: str, bundle: Path, settings: Mapping[str, str]) -> Iterator["Container"]:
        """A service that was just started with `bundle`; removed at the end, whatever happens."""
        name = f"i2moe-try-{uuid.uuid4().hex[:8]}"
        variables = [f"--env={variable}={value}" for variable, value in settings.items()]
        volume = f"--volume={bundle.resolve()}:/bundle:ro"
        self("create", f"--name={name}", *self.locks, TMP, volume, *variables, image)
        try:
            started = time.monotonic()
            self("start", name)
            yield Container(self, name, started)
        except EngineError:
            subprocess.run([self.program, "logs", name], stdout=sys.stderr, check=False)
            raise
        finally:
            self("rm", "--force", name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What an image says of itself."""

    name: str
    user: str
    labels: Mapping[str, str]
    health: tuple[str, ...]
    stop_signal: str


@dataclass(frozen=True, slots=True)
class Container:
    """A running service."""

    engine: Engine
    name: str
    started: float

    def wait(self, status: int = 200, text: str = "") -> tuple[str, float]:
        """The answer of /readyz once it has that status and tells `text`, and the seconds since the start."""
        told = self._probe("wait", str(status), text).strip()
        return told, time.monotonic() - self.started

    def look(self) -> dict[str, Any]:
        """What the probe finds inside."""
        found: dict[str, Any] = json.loads(self._probe())
        return found

    def execute(self, command: tuple[str, ...]) -> str:
        """What a command prints inside. Raises `EngineError` where it fails."""
        return self.engine("exec", self.name, *command)

    def stop(self) -> tuple[int, float]:
        """SIGTERM, and after the grace SIGKILL: the exit status and the seconds."""
        started = time.monotonic()
        self.engine("stop", "--time", str(STOP_S), self.name)
        seconds = time.monotonic() - started
        return int(self.engine("inspect", "--format", "{{.State.ExitCode}}", self.name)), seconds

    def _probe(self, *arguments: str) -> str:
        return self.engine("exec", "--interactive", self.name, "python", "-", *arguments, stdin=PROBE.read_text())
