"""Where predictions and what became of them are kept: a SQLite file or a PostgreSQL database."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from service.audit.entries import AuditEntry, AuditError, Judged, Outcome, Refusal

try:
    import sqlalchemy as sql
except ModuleNotFoundError as error:  # pragma: no cover - tests have it
    raise ModuleNotFoundError("keeping predictions needs a database library: pip install 'i2moe-service[audit]'") from error

from service.audit.outcomes import add_outcomes, judged, outcomes_of
from service.audit.tables import METADATA, OUTCOMES, PREDICTIONS, VERSIONS, microseconds, prediction_entry, prediction_row

FORMAT_VERSION = 1  # of the tables; a store of another version is refused
MAX_FOUND = 2000  # predictions that are read under one request id
_BUSY_S = 10  # how long a worker waits for another that is writing to the same SQLite file
_PRUNED_AT_ONCE, _BETWEEN_PARTS_S = 1000, 0.1  # long enough for a writer that looks again every tenth of a second
_GIVE_UP_S = 10  # when a PostgreSQL server that does not answer, or its network, counts as gone
_RETRIES_S = (0.05, 0.1, 0.2, 0.4, 0.8)


class PredictionStore:
    """An open store. Every method may be called from any thread, and several processes may share one."""

    def __init__(self, url: str, *, keep_days: float, must_exist: bool = False) -> None:
        """Open the store, and make its tables where there are none. Raises `AuditError`.

        With `must_exist` a SQLite file that is not there is an error: readers would make an empty one of a misspelt name.
        `url` is SQLAlchemy's: `sqlite:////var/lib/i2moe/predictions.db` or `postgresql+psycopg://user:password@host/database`.
        """
        self._keep = timedelta(days=keep_days)
        self._where = "the audit store"
        with self._words_errors("opened"):
            address = sql.make_url(url)
            self._where = address.render_as_string(hide_password=True)
            if must_exist and not _is_there(address):
                raise AuditError(f"{self._where}: expected a store, found no file")
            self._engine = sql.create_engine(address, hide_parameters=True, **_options(address))
            _prepare(self._engine)
        self._check_version()

    @contextmanager
    def _words_errors(self, doing: str) -> Iterator[None]:
        """Errors of the database by their kind alone: their texts may hold what was written."""
        try:
            yield
        except (sql.exc.SQLAlchemyError, OSError, ImportError, ValueError) as error:
            cause = getattr(error, "orig", None) or error
            raise AuditError(f"{self._where}: could not be {doing} ({type(cause).__name__})") from None

    def _check_version(self) -> None:
        with self._words_errors("opened"):
            found = self._made_tables()
        if found != [FORMAT_VERSION]:
            raise AuditError(f"{self._where}: expected tables of version {FORMAT_VERSION}, found {found}")

    def _made_tables(self) -> list[int]:
        """The same, also where another worker is making them at this moment."""
        for wait_s in _RETRIES_S:
            try:
                return self._make_tables()
            except sql.exc.SQLAlchemyError as error:
                if not _is_race(error):
                    raise
                time.sleep(wait_s)
        return self._make_tables()

    def _make_tables(self) -> list[int]:
        """Make what is not there; answers the version of what is."""
        with self._engine.begin() as connection:
            METADATA.create_all(connection, checkfirst=True)
            found = list(connection.execute(sql.select(VERSIONS.c.version)).scalars())
            if not found:
                connection.execute(VERSIONS.insert(), [{"version": FORMAT_VERSION}])
        return found or [FORMAT_VERSION]

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """Keep all of these, or none. They are on the disk when this returns. Raises `AuditError`."""
        with self._words_errors("written"), self._engine.begin() as connection:
            connection.execute(PREDICTIONS.insert(), [prediction_row(entry) for entry in entries])

    def find(self, request_id: str) -> list[AuditEntry]:
        """What was answered to requests of this id, and what became of it, the oldest first. Raises `AuditError`.

        A client may use an id twice, or for everything: of many the last `MAX_FOUND`.
        """
        mine = sql.select(PREDICTIONS).where(PREDICTIONS.c.request_id == request_id)
        wanted = mine.order_by(PREDICTIONS.c.number.desc()).limit(MAX_FOUND)
        with self._words_errors("read"), self._engine.connect() as connection:
            rows = list(reversed(connection.execute(wanted).mappings().all()))
            told = outcomes_of(connection, [row["number"] for row in rows])
        return [prediction_entry(row, told[row["number"]]) for row in rows]

    def add_outcomes(self, outcomes: Sequence[Outcome], *, received: datetime) -> list[Refusal | None]:
        """Keep what became of predictions; answers for each why it was refused, or None. Raises `AuditError`."""
        with self._words_errors("written"), self._engine.begin() as connection:
            return add_outcomes(connection, outcomes, received=received)

    def judged(self, since: datetime, until: datetime) -> Iterator[Judged]:
        """Predictions of that time whose outcome is known, by the outcome told last, as they are read. Raises `AuditError`."""
        with self._words_errors("read"), self._engine.connect() as connection:
            yield from judged(connection, since, until)

    def prune(self, now: datetime) -> int:
        """Forget what is older than may be kept, outcomes included; answers how many predictions. Raises `AuditError`.

        A part at a time, and others write in between: one transaction over a year would hold up every answer.
        """
        forgotten = 0
        while part := self._prune_part(now):
            forgotten += part
            time.sleep(_BETWEEN_PARTS_S)
        return forgotten

    def _prune_part(self, now: datetime) -> int:
        number, old = PREDICTIONS.c.number, PREDICTIONS.c.time_us < microseconds(now - self._keep)
        with self._words_errors("pruned"), self._engine.begin() as connection:
            wanted = sql.select(number).where(old).order_by(PREDICTIONS.c.time_us).limit(_PRUNED_AT_ONCE)
            numbers = list(connection.execute(wanted).scalars())
            if not numbers:
                return 0
            connection.execute(OUTCOMES.delete().where(OUTCOMES.c.prediction.in_(numbers)))
            return int(connection.execute(PREDICTIONS.delete().where(number.in_(numbers))).rowcount)

    def close(self) -> None:
        """Let go of files and connections."""
        self._engine.dispose()


def _is_race(error: Exception) -> bool:
    """Whether somebody else got there first: a table or row that is already there, a SQLite file whose mode is being changed."""
    return (
        isinstance(error, sql.exc.IntegrityError | sql.exc.ProgrammingError)
        or "SQLITE_BUSY" in getattr(getattr(error, "orig", None), "sqlite_errorname", "")
        or "already exists" in str(getattr(error, "orig", ""))
    )


def _is_there(address: sql.URL) -> bool:
    return address.get_backend_name() != "sqlite" or Path(address.database or "").is_file()


def _options(address: sql.URL) -> dict[str, Any]:
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_S}}
    # One connection each for writing, pruning, measuring and whoever asks; a database that restarts is found again.
    pool = {"pool_pre_ping": True, "pool_size": 4, "max_overflow": 0, "pool_timeout": _GIVE_UP_S}
    patience = {"connect_timeout": _GIVE_UP_S, "tcp_user_timeout": 1000 * _GIVE_UP_S} if "psycopg" in address.drivername else {}
    return {**pool, "connect_args": {name: value for name, value in patience.items() if name not in address.query}}


def _prepare(engine: sql.Engine) -> None:
    """SQLite: readers do not wait for writers, and what is committed survives a power cut."""
    if engine.dialect.name == "sqlite":

        @sql.event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
