"""Where predictions are kept: one table of a SQLite file or of a PostgreSQL database. The only module that knows SQLAlchemy."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from service.audit.entries import AuditEntry, AuditError

try:
    import sqlalchemy as sql
except ModuleNotFoundError as error:  # pragma: no cover - tests have it
    raise ModuleNotFoundError("keeping predictions needs a database library: pip install 'i2moe-service[audit]'") from error

FORMAT_VERSION = 1  # of the tables; a store of another version is refused
_BUSY_S = 10  # how long a worker waits for another that is writing to the same SQLite file

_RETRIES_S = (0.05, 0.1, 0.2, 0.4, 0.8)

_METADATA = sql.MetaData()
_VERSIONS = sql.Table("i2moe_audit_format", _METADATA, sql.Column("version", sql.Integer, primary_key=True))
_PREDICTIONS = sql.Table(
    "i2moe_predictions",
    _METADATA,
    sql.Column("number", sql.BigInteger().with_variant(sql.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sql.Column("request_id", sql.String(128), nullable=False, index=True),
    sql.Column("position", sql.Integer, nullable=False),
    sql.Column("time_us", sql.BigInteger, nullable=False, index=True),  # since 1970, UTC; SQLite knows no time zones
    sql.Column("model_name", sql.String, nullable=False),
    sql.Column("model_version", sql.String, nullable=False),
    sql.Column("model_sha256", sql.String(64), nullable=False),
    sql.Column("probability", sql.Float),  # for whoever looks for patients at risk with SQL; the rest is in `prediction`
    sql.Column("prediction", sql.JSON, nullable=False),
    sql.Column("record", sql.JSON(none_as_null=True)),
)
_MODEL = ("name", "version", "sha256")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PredictionStore:
    """An open store. Every method may be called from any thread, and several processes may share one."""

    def __init__(self, url: str, *, keep_days: float) -> None:
        """Open the store, and make its tables where there are none. Raises `AuditError`.

        `url` is SQLAlchemy's: `sqlite:////var/lib/i2moe/predictions.db` or `postgresql+psycopg://user:password@host/database`.
        """
        self._keep = timedelta(days=keep_days)
        self._where = "the audit store"
        with self._words_errors("opened"):
            address = sql.make_url(url)
            self._where = address.render_as_string(hide_password=True)
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
            _METADATA.create_all(connection, checkfirst=True)
            found = list(connection.execute(sql.select(_VERSIONS.c.version)).scalars())
            if not found:
                connection.execute(_VERSIONS.insert(), [{"version": FORMAT_VERSION}])
        return found or [FORMAT_VERSION]

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """Keep all of these, or none. They are on the disk when this returns. Raises `AuditError`."""
        with self._words_errors("written"), self._engine.begin() as connection:
            connection.execute(_PREDICTIONS.insert(), [_row(entry) for entry in entries])

    def find(self, request_id: str) -> list[AuditEntry]:
        """What was answered to requests of this id, the oldest first; a client may use an id twice. Raises `AuditError`."""
        wanted = sql.select(_PREDICTIONS).where(_PREDICTIONS.c.request_id == request_id).order_by(_PREDICTIONS.c.number)
        with self._words_errors("read"), self._engine.connect() as connection:
            return [_entry(row) for row in connection.execute(wanted).mappings()]

    def prune(self, now: datetime) -> int:
        """Forget what is older than may be kept; answers how many predictions that were. Raises `AuditError`."""
        old = _PREDICTIONS.c.time_us < _microseconds(now - self._keep)
        with self._words_errors("pruned"), self._engine.begin() as connection:
            return int(connection.execute(_PREDICTIONS.delete().where(old)).rowcount)

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


def _options(address: sql.URL) -> dict[str, Any]:
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_S}}
    return {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 0}  # a database that restarts is found again


def _prepare(engine: sql.Engine) -> None:
    """SQLite: readers do not wait for writers, and what is committed survives a power cut."""
    if engine.dialect.name == "sqlite":

        @sql.event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "request_id": entry.request_id,
        "position": entry.position,
        "time_us": _microseconds(entry.time),
        **{f"model_{name}": entry.model[name] for name in _MODEL},
        "probability": entry.prediction.get("probability"),
        "prediction": dict(entry.prediction),
        "record": None if entry.record is None else dict(entry.record),
    }


def _entry(row: sql.RowMapping) -> AuditEntry:
    return AuditEntry(
        request_id=row["request_id"],
        position=row["position"],
        time=_EPOCH + timedelta(microseconds=row["time_us"]),
        model={name: row[f"model_{name}"] for name in _MODEL},
        prediction=row["prediction"],
        record=row["record"],
    )
