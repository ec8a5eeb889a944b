"""The tables of the store, and how entries become rows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sql

from service.audit.entries import AuditEntry, KeptOutcome

_NUMBER = sql.BigInteger().with_variant(sql.Integer, "sqlite")  # SQLite counts only what it calls an INTEGER
METADATA = sql.MetaData()
VERSIONS = sql.Table("i2moe_audit_format", METADATA, sql.Column("version", sql.Integer, primary_key=True))
PREDICTIONS = sql.Table(
    "i2moe_predictions",
    METADATA,
    sql.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sql.Column("request_id", sql.String(128), nullable=False, index=True),
    sql.Column("position", sql.Integer, nullable=False),
    sql.Column("time_us", sql.BigInteger, nullable=False, index=True),  # since 1970, UTC; SQLite knows no time zones
    sql.Column("model_name", sql.String, nullable=False),
    sql.Column("model_version", sql.String, nullable=False),
    sql.Column("model_sha256", sql.String(64), nullable=False),
    sql.Column("probability", sql.Float),  # for whoever looks for patients at risk with SQL; the rest is in `prediction`
    sql.Column("prediction", sql.JSON, nullable=False),
    sql.Column("record", sql.JSON(none_as_null=True)),
    sqlite_autoincrement=True,  # a number is never given again, so no outcome is ever another prediction's
)
OUTCOMES = sql.Table(  # a later outcome of a prediction counts instead of an earlier one, which stays
    "i2moe_outcomes",
    METADATA,
    sql.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sql.Column("prediction", _NUMBER, nullable=False, index=True),  # its number
    sql.Column("label", sql.String, nullable=False),
    sql.Column("event", sql.Boolean),  # whether the label whose probability is kept came true; null: told to an older service
    sql.Column("time_us", sql.BigInteger),  # when it happened, where that was told
    sql.Column("received_us", sql.BigInteger, nullable=False),
)
_MODEL = ("name", "version", "sha256")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def prediction_row(entry: AuditEntry) -> dict[str, Any]:
    """An entry as the table holds it."""
    return {
        "request_id": entry.request_id,
        "position": entry.position,
        "time_us": microseconds(entry.time),
        **{f"model_{name}": entry.model[name] for name in _MODEL},
        "probability": entry.prediction.get("probability"),
        "prediction": dict(entry.prediction),
        "record": None if entry.record is None else dict(entry.record),
    }


def moment(microseconds: int) -> datetime:
    """Since 1970, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def prediction_entry(row: sql.RowMapping, outcomes: tuple[KeptOutcome, ...]) -> AuditEntry:
    """The entry that a row holds, with what was told of it later."""
    return AuditEntry(
        request_id=row["request_id"],
        position=row["position"],
        time=moment(row["time_us"]),
        model={name: row[f"model_{name}"] for name in _MODEL},
        prediction=row["prediction"],
        record=row["record"],
        outcomes=outcomes,
    )
