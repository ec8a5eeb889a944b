"""What the real process does on a machine that turns against it: a full disk, a root it may not write to, a clock that jumps."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.serving import Server, running_server
from tests.tiny_bundle import EXAMPLE_RISK, tiny_example, write_tiny_bundle

pytestmark = pytest.mark.slow

DISK_MB = 8
# A small disk of its own at $1, inside a mount namespace that ends with the process; then what follows.
ON_A_SMALL_DISK = f'mount -t tmpfs -o size={DISK_MB}m tmpfs "$1"; shift; '
READ_ONLY_ROOT = "mount -o remount,bind,ro /; "
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")  # Debian: apt install faketime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle."""
    return write_tiny_bundle(tmp_path_factory.mktemp("hostile") / "bundle").path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where the small disk will be, seen from inside; skips where nobody may mount one."""
    probe = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("user and mount namespaces are not allowed here")
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@contextlib.contextmanager
def serving_on(disk: Path, bundle: Path, script: str = "", **environment: str) -> Iterator[Server]:
    """A service whose every file is on the small disk; `script` is done before it starts."""
    inside = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-ec",
        f'{ON_A_SMALL_DISK}{script}exec "$@"',
        "sh",
        str(disk),
    ]
    on_disk = {"BENTOML_HOME": str(disk / "home"), "TMPDIR": str(disk), **environment}
    with running_server(bundle, disk.parent / "server", environment=on_disk, inside=inside) as server:
        yield server


def fill(server: Server, disk: Path) -> Path:
    """Write until the disk is full; answers what to delete again."""
    seen = Path(f"/proc/{server.process.pid}/root{disk}")
    with contextlib.suppress(OSError), (seen / "fill").open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    status = os.statvfs(seen)
    assert (status.f_blocks * status.f_frsize, status.f_bavail) == (DISK_MB << 20, 0)
    return seen / "fill"


def is_well(server: Server) -> bool:
    """Answering as by hand."""
    answer = server.post("/predict", tiny_example())
    return answer.status_code == 200 and answer.json()["predictions"][0]["probability"] == EXAMPLE_RISK


def test_a_full_disk_stops_neither_answers_nor_counts(disk: Path, bundle: Path) -> None:
    """Every route goes on and every request is counted, also in series that are new: their files have had their blocks."""
    paths = (
        "/model",
        "/explanations",
        "/docs.json",
        "/v2",
        "/nothing",
        "/predictions/x",
        "/outcomes",
        "/static/x",
        "/readyz",
        "/",
    )
    with serving_on(disk, bundle) as server:
        fill(server, disk)
        before = {path: server.get(path).status_code for path in paths}
        assert all(is_well(server) for _ in range(20))
        assert {path: server.get(path).status_code for path in paths} == before
        assert server.post("/predict", {"labs": 1}).status_code == 422
        assert server.metric('i2moe_request_duration_seconds_count{route="/predict",status="200"}') == 20
        assert server.metric('i2moe_request_duration_seconds_count{route="/predict",status="422"}') == 1
        assert server.metric('i2moe_request_duration_seconds_count{route="/model",status="200"}') == 2
        assert server.log.count("Service I2MoEService initialized") == 1


def test_a_disk_without_room_for_metrics_is_told_at_the_start(disk: Path, bundle: Path) -> None:
    """In one sentence with the place and what is needed, not by a signal later."""
    filled = 'head -c 7m /dev/zero >"$DISK/fill"; '
    inside = f'DISK="$1"; {ON_A_SMALL_DISK}{filled}exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", inside, "sh", str(disk)]
    on_disk = {"BENTOML_HOME": str(disk / "home"), "TMPDIR": str(disk)}
    sentence = "No space left on device: the metrics of a serving process need 1,703,936 bytes here"
    with (
        pytest.raises(AssertionError, match=sentence),
        running_server(bundle, disk.parent / "server", environment=on_disk, inside=command, start_s=15),
    ):
        pass


def test_with_a_full_disk_no_prediction_is_answered_that_must_be_kept(disk: Path, bundle: Path) -> None:
    """503 while there is no room, and as before once there is."""
    with serving_on(disk, bundle, I2MOE_AUDIT_URL=f"sqlite:///{disk / 'kept.db'}") as server:
        assert is_well(server)
        filled = fill(server, disk)
        refused = server.post("/predict", tiny_example())
        assert (refused.status_code, refused.json()["code"]) == (503, "NOT_KEPT")
        assert refused.headers["retry-after"] == "5"
        filled.unlink()
        assert is_well(server)
        assert server.metric('i2moe_audit_total{outcome="kept"}') == 2


def test_with_a_full_disk_what_need_not_be_kept_is_answered_and_counted_as_lost(disk: Path, bundle: Path) -> None:
    """Where the operator has said that answers matter more."""
    kept = {"I2MOE_AUDIT_URL": f"sqlite:///{disk / 'kept.db'}", "I2MOE_AUDIT_REQUIRED": "false"}
    with serving_on(disk, bundle, **kept) as server:
        fill(server, disk)
        assert is_well(server)
        assert server.metric('i2moe_audit_total{outcome="lost"}') == 1


def test_a_log_that_cannot_be_written_stops_nothing(disk: Path, bundle: Path) -> None:
    """Standard output and error on a full device: answers, and an orderly end."""
    with serving_on(disk, bundle, "exec >/dev/full 2>&1; ", I2MOE_ACCESS_LOG="true", I2MOE_LOG_LEVEL="DEBUG") as server:
        assert all(is_well(server) for _ in range(5))
        assert server.terminate() == 0
        assert server.log == ""


def test_nothing_is_written_outside_the_folders_that_are_given(disk: Path, bundle: Path) -> None:
    """With the root mounted read-only, as containers should be: ready, and answering."""
    with serving_on(disk, bundle, READ_ONLY_ROOT, I2MOE_AUDIT_URL=f"sqlite:///{disk / 'kept.db'}") as server:
        with contextlib.suppress(OSError):
            Path(f"/proc/{server.process.pid}/root{bundle}/x").touch()
            raise AssertionError("the root can be written to")
        assert all(is_well(server) for _ in range(5))
        assert server.get("/metrics").status_code == 200


def test_a_clock_that_jumps_changes_no_deadline_and_no_duration(tmp_path: Path, bundle: Path) -> None:
    """Forwards past every retention, backwards before the start: answers are given, durations are those that passed."""
    if not FAKETIME.exists():
        pytest.skip(f"{FAKETIME} is not installed (Debian: apt install faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0s")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "NO_FAKE_STAT": "1",
    }
    faked |= {
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "I2MOE_AUDIT_URL": f"sqlite:///{tmp_path / 'kept.db'}",
        "I2MOE_TIMEOUT_S": "20",
    }
    with running_server(bundle, tmp_path / "server", environment=faked) as server:
        for jump_s in (60, -60, 400 * 86_400, -400 * 86_400, 0):
            clock.write_text(f"{jump_s:+d}s")
            _wait_for_clock(server, jump_s)
            for _ in range(5):
                answer = server.post("/predict", tiny_example())
                assert answer.status_code == 200
                assert 0 <= answer.json()["timing_ms"]["total"] < 20_000
        assert server.metric("i2moe_queue_seconds_count") == 25
        assert 0 <= server.metric("i2moe_queue_seconds_sum") < 20
        assert server.metric('i2moe_audit_total{outcome="kept"}') == 25
        assert server.terminate() == 0


def _wait_for_clock(server: Server, jump_s: float) -> None:
    """Until the service's clock is this far from ours."""
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        told = parsedate_to_datetime(server.get("/livez").headers["date"])
        if abs((told - datetime.now(UTC)).total_seconds() - jump_s) < 5:
            return
        time.sleep(0.1)
    raise AssertionError(f"the clock never jumped by {jump_s} s")
