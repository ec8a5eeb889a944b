"""What the machine lets this process use, and how this process uses it."""

import gc
import math
import os
from pathlib import Path

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """Cores this process may really use: its CPU affinity, or the container's CPU quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        return cores


def leave_garbage(*thresholds: int) -> None:
    """Look for cycles seldom (`gc.set_threshold`), and never through what is there now, such as all that was imported.

    Nearly everything is freed by its count of references: walking what is alive took a third of the time of telling predictions,
    and of a service's in overload.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
