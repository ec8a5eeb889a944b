"""The store of predictions: SQLite, and PostgreSQL where its programs are installed."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from service.audit.entries import AuditEntry, AuditError, without_values
from service.audit.store import PredictionStore, _options

MODEL = {"name": "tiny", "version": "1.0.0", "sha256": "a" * 64}
NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, UTC)


def entry(request_id: str = "r1", position: int = 0, **changes: Any) -> AuditEntry:
    """A prediction as it is kept."""
    prediction = {"label": "dead", "probability": 0.25, "explanation": {"experts": [{"name": "synergy", "weight": 0.5}]}}
    told: dict[str, Any] = {"time": NOW, "model": MODEL, "prediction": prediction} | changes
    return AuditEntry(request_id=request_id, position=position, **told)


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    which = shutil.which("initdb")
    return found[-1].parent if found else Path(which).parent if which else None


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of these tests' own, reached by a socket in its folder."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("pg")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = {"user": "nobody", "group": "nogroup"}
        shutil.chown(folder, "nobody", "nogroup")
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(0o755)
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run([programs / "initdb", "-D", data, "-U", "i2moe", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = ["-D", data, "-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([programs / "postgres", *options], stdout=log, stderr=log, cwd=folder, **user)
    try:
        _wait_for(folder, server)
        yield f"postgresql+psycopg://i2moe:secret@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGQUIT)  # at once
        server.wait(20)


def _wait_for(folder: Path, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"host={folder} user=i2moe dbname=postgres").close()
            return
        assert server.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    raise AssertionError("PostgreSQL does not start")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh store of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    url: str = request.getfixturevalue("postgres")
    import sqlalchemy as sql

    engine = sql.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sql.text("DROP TABLE IF EXISTS i2moe_outcomes, i2moe_predictions, i2moe_audit_format"))
    engine.dispose()
    return url


@pytest.fixture
def store(url: str) -> Iterator[PredictionStore]:
    """An open store that keeps a year."""
    store = PredictionStore(url, keep_days=365)
    yield store
    store.close()


def test_what_is_written_is_found_as_it_was(store: PredictionStore) -> None:
    """To the microsecond, with its record where that is kept, in order, and by its request alone."""
    entries = [entry(position=0, record={"labs": {"crea": 4.0}}), entry(position=1), entry("r2")]
    store.write(entries)
    assert store.find("r1") == entries[:2]
    assert store.find("r2") == entries[2:]
    assert store.find("nobody's") == []


def test_an_id_that_is_used_twice_has_two_answers(store: PredictionStore) -> None:
    """Nothing is overwritten."""
    store.write([entry()])
    store.write([entry(time=NOW + timedelta(days=1))])
    assert [found.time.day for found in store.find("r1")] == [1, 2]


def test_old_predictions_are_forgotten(store: PredictionStore) -> None:
    """Those older than may be kept, and no others."""
    store.write([entry("old", time=NOW - timedelta(days=366)), entry("young", time=NOW - timedelta(days=364))])
    assert store.prune(NOW) == 1
    assert store.find("old") == []
    assert len(store.find("young")) == 1


def test_many_old_predictions_are_forgotten_in_parts(store: PredictionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a transaction of its own, so that nobody waits to write until all are gone; the count is of all."""
    monkeypatch.setattr("service.audit.store._PRUNED_AT_ONCE", 2)
    pauses: list[float] = []
    monkeypatch.setattr("service.audit.store.time.sleep", pauses.append)
    store.write([entry("old", i, time=NOW - timedelta(days=366)) for i in range(5)] + [entry("young")])
    assert store.prune(NOW) == 5
    assert len(pauses) == 3
    assert (store.find("old"), len(store.find("young"))) == ([], 1)


def test_of_an_id_that_is_used_for_everything_the_last_are_found(store: PredictionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one request reads is bounded."""
    monkeypatch.setattr("service.audit.store.MAX_FOUND", 2)
    store.write([entry(position=i) for i in range(5)])
    assert [found.position for found in store.find("r1")] == [3, 4]


def test_a_commit_to_a_file_survives_a_power_cut_and_holds_up_no_reader(tmp_path: Path) -> None:
    """By what SQLite is told on every connection."""
    store = PredictionStore(f"sqlite:///{tmp_path / 'kept.db'}", keep_days=1)
    with store._engine.connect() as first, store._engine.connect() as second:
        for connection in (first, second):
            told = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
            assert told == ["wal", 2]  # 2: FULL
    store.close()


@pytest.mark.parametrize(("query", "wait_s"), [("", 10), ("?connect_timeout=3", None)])
def test_a_server_that_does_not_answer_is_given_up(query: str, wait_s: int | None) -> None:
    """Sooner than TCP does, which may take a quarter of an hour; what the URL says about it holds."""
    options = _options(make_url(f"postgresql+psycopg://i2moe@host/database{query}"))
    assert options["connect_args"].get("connect_timeout") == wait_s
    assert options["connect_args"]["tcp_user_timeout"] == 10_000


def test_all_or_nothing(store: PredictionStore) -> None:
    """One entry that cannot be written takes its transaction with it, and its values stay out of the message."""
    bad = entry("r2", prediction={"probability": 0.5, "label": object()})
    with pytest.raises((AuditError, TypeError)) as caught:
        store.write([entry(), bad])
    assert "0.25" not in str(caught.value)
    assert store.find("r1") == []


def test_a_store_is_opened_again(url: str) -> None:
    """By the next process, which finds what the last one wrote."""
    first = PredictionStore(url, keep_days=1)
    first.write([entry()])
    first.close()
    second = PredictionStore(url, keep_days=1)
    assert len(second.find("r1")) == 1
    second.close()


def _write_some(url: str, worker: int, number: int) -> None:
    store = PredictionStore(url, keep_days=1)
    for i in range(number):
        store.write([entry(f"worker-{worker}", i)])
    store.close()


@pytest.mark.slow
def test_workers_share_a_store(url: str) -> None:
    """Several processes make the tables and write at once, and nothing is lost."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_some, args=(url, worker, 20)) for worker in range(3)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
        assert process.exitcode == 0
    store = PredictionStore(url, keep_days=1)
    assert [len(store.find(f"worker-{worker}")) for worker in range(3)] == [20, 20, 20]
    store.close()


@pytest.mark.slow
def test_what_was_written_survives_a_killed_process(tmp_path: Path) -> None:
    """`write` has returned, so it is there, whatever happens to the process."""
    url = f"sqlite:///{tmp_path / 'predictions.db'}"
    program = (
        "import sys, time; from tests.service.audit.test_store import PredictionStore, entry;"
        "PredictionStore(sys.argv[1], keep_days=1).write([entry()]); print('kept', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "kept\n"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    store = PredictionStore(url, keep_days=1)
    assert len(store.find("r1")) == 1
    store.close()


def test_tables_of_another_version_are_refused(tmp_path: Path) -> None:
    """They may hold something else under the same names."""
    path = tmp_path / "predictions.db"
    PredictionStore(f"sqlite:///{path}", keep_days=1).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE i2moe_audit_format SET version = 7")
    connection.close()
    with pytest.raises(AuditError, match=r"expected tables of version 1, found \[7\]"):
        PredictionStore(f"sqlite:///{path}", keep_days=1)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////no/such/folder/predictions.db",
        "nonsense",
        "postgresql+psycopg://i2moe:secret@127.0.0.1:1/none?connect_timeout=1",
        "oracle://i2moe:secret@127.0.0.1/none",
    ],
)
def test_a_store_that_cannot_be_opened_says_so_without_its_password(url: str) -> None:
    """In one sentence."""
    with pytest.raises(AuditError, match=r"could not be opened \(\w+\)") as caught:
        PredictionStore(url, keep_days=1)
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Rather than made anew over what may still be saved."""
    path = tmp_path / "predictions.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(AuditError, match="could not be opened"):
        PredictionStore(f"sqlite:///{path}", keep_days=1)
    assert path.read_bytes().startswith(b"no database")


def test_values_of_a_patient_are_left_out() -> None:
    """Warnings and sentences may repeat values, features of experts tell them; weights and contributions stay."""
    experts: Sequence[dict[str, Any]] = [
        {
            "name": "synergy",
            "weight": 0.5,
            "contribution": 1.0,
            "features": [{"name": "labs.crea"}],
            "rest": 0,
            "base": 0,
            "gap": 0,
        }
    ]
    prediction = {
        "id": "stay-1",
        "probability": 0.5,
        "warnings": ["labs.crea 14.2 is outside"],
        "missing": ["labs.sod"],
        "explanation": {"dominant": "synergy", "summary": "Risk ... labs.crea", "experts": experts},
    }
    assert without_values(prediction) == {
        "probability": 0.5,
        "missing": ["labs.sod"],
        "explanation": {"dominant": "synergy", "experts": [{"name": "synergy", "weight": 0.5, "contribution": 1.0}]},
    }
    assert without_values({"id": "a", "probability": 0.5}) == {"probability": 0.5}
