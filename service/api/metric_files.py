"""The files in which serving processes keep their metrics, by which a scrape adds them up.

With PROMETHEUS_MULTIPROC_DIR, which BentoML sets, prometheus_client maps files into memory that hold no blocks of the disk yet.
Where the disk is full, a write to such a page is not an error but a signal, SIGBUS, and the process is gone. So every file gets
its blocks before it is mapped, with room for all series that the service can have.
"""

import functools
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
_ROOM = {"histogram": 1 << 20}  # bytes; some 4 kB for each route and status, most of them never seen
_ROOM_OF_OTHERS = 1 << 17


def begin_files(kinds: Iterable[str]) -> None:
    """Reserve this process's files, and forget processes that died without saying so.

    `kinds` are the first parts of the files' names: histogram, counter, gauge_livesum and so on. Raises `OSError` where there is
    no room, which at the start is better told than later.
    """
    if folder := os.environ.get(MULTIPROCESS_DIR):
        _remember_process()
        _forget_dead_processes(Path(folder))
        rooms = {kind: _ROOM.get(kind, _ROOM_OF_OTHERS) for kind in kinds}
        try:
            for kind, room in rooms.items():
                _reserve(Path(folder) / f"{kind}_{os.getpid()}.db", room)
        except OSError as error:
            needed = f"the metrics of a serving process need {sum(rooms.values()):,} bytes here"
            raise OSError(error.errno, f"{error.strerror}: {needed}", folder) from None


@functools.cache
def _remember_process() -> None:
    """Keep the process's id: prometheus_client asks the system for it with every number that it counts, some ten in a request.

    Once a process, since another class of values would open the same files a second time.
    """
    if values.ValueClass is not values.MutexValue:
        values.ValueClass = values.MultiProcessValue(_ThisProcess().id)  # type: ignore[no-untyped-call]


class _ThisProcess:
    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._id = os.getpid()

    def id(self) -> int:
        return self._id


def _reserve(path: Path, room: int) -> None:
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, room)


def forget_this_process() -> None:
    """Take this process out of the live gauges; its counts stay."""
    if folder := os.environ.get(MULTIPROCESS_DIR):
        mark_process_dead(os.getpid(), folder)  # type: ignore[no-untyped-call]


def _forget_dead_processes(folder: Path) -> None:
    """Drop the live gauges of processes that were killed: a restarted worker must not be added to its predecessor."""
    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not _is_alive(pid):
            with suppress(FileNotFoundError):  # another worker that begins forgets it, too
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True
