"""A process that reads fuzzed files, since some of them may end it: `python -m tests.fuzz.worker`.

Requests and answers are JSON lines. Its memory is limited, so that whoever asks for terabytes gets a MemoryError and
does not end the machine.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0  # for one file, on a machine that does other things too; then it is ended
_ROOM_BYTES = 4 << 30  # of address space, beyond what is there once everything is imported
_PAGE_BYTES = resource.getpagesize()
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one file."""

    status: int | None = None  # as a command's; None where the process died or was ended
    told: str = ""  # on standard error
    escaped: str = ""  # the traceback of what nobody caught
    died: str = ""  # how, where the process did
    growth_kb: int = 0  # of the process's largest resident size


class Worker:
    """The process, started when it is first needed and again whenever it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process

    def read(self, reader: str, *arguments: str | Path) -> Answer:
        """Let one of `tests.fuzz.readers` read a file."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([reader, *map(str, arguments)]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if line:
            return Answer(**json.loads(line))
        self._process = None
        with process:
            code = process.wait()
        self._stderr.seek(0)
        tail = self._stderr.read()[-2000:]
        name = (
            "no answer in time" if -code == signal.SIGALRM else signal.Signals(-code).name if code < 0 else f"exit status {code}"
        )
        return Answer(died=f"{name}: {tail}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            with self._process:
                self._process.stdin.close()
        self._stderr.close()

    def _start(self) -> "subprocess.Popen[str]":
        self._stderr.seek(0)
        self._stderr.truncate()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=_ROOT,
            env=environment,
        )


def _resident_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read(request: Sequence[str]) -> dict[str, Any]:
    from tests.fuzz.readers import READERS

    name, *arguments = request
    told, before = io.StringIO(), _resident_kb()
    answer: dict[str, Any] = {"status": None}
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            answer["status"] = READERS[name](*arguments)
    except BaseException:  # a panic of a Rust library is no Exception
        answer["escaped"] = traceback.format_exc()[-6000:]
    return answer | {"told": told.getvalue()[:1_000_000], "growth_kb": _resident_kb() - before}


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM_BYTES, resource.RLIM_INFINITY))


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import tests.fuzz.readers as _readers

    _readers.warm_up()
    _limit_memory()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # ends the process: a hang may be one of a library
        answer = _read(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
