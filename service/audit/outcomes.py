"""What became of predictions: kept beside them, and read together with them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sql

from service.audit.entries import Judged, Outcome, Refusal
from service.audit.tables import OUTCOMES, PREDICTIONS, microseconds

_Key = tuple[str, int]


def add_outcomes(connection: sql.Connection, outcomes: Sequence[Outcome], *, received: datetime) -> list[Refusal | None]:
    """Keep those that fit a prediction; answers for each why it does not, or None."""
    found = _predictions(connection, outcomes)
    refusals = [_refusal(outcome, found.get((outcome.request_id, outcome.position), [])) for outcome in outcomes]
    rows = [
        _row(outcome, found[outcome.request_id, outcome.position][0], received)
        for outcome, refusal in zip(outcomes, refusals, strict=True)
        if refusal is None
    ]
    if rows:
        connection.execute(OUTCOMES.insert(), rows)
    return refusals


def _predictions(connection: sql.Connection, outcomes: Sequence[Outcome]) -> dict[_Key, list[sql.RowMapping]]:
    """The predictions that are named; several where a client used a request id twice."""
    table = PREDICTIONS.c
    wanted = sql.select(table.number, table.request_id, table.position, table.prediction)
    found: dict[_Key, list[sql.RowMapping]] = {}
    for row in connection.execute(wanted.where(table.request_id.in_({one.request_id for one in outcomes}))).mappings():
        found.setdefault((row["request_id"], row["position"]), []).append(row)
    return found


def _refusal(outcome: Outcome, found: Sequence[sql.RowMapping]) -> Refusal | None:
    if not found:
        return Refusal("request_id", "unknown_prediction", "no prediction is kept under this request id and position")
    if len(found) > 1:
        msg = (
            f"expected one prediction under this request id and position, found {len(found)}: whose outcome it is cannot be told"
        )
        return Refusal("request_id", "ambiguous_prediction", msg)
    labels = list(found[0]["prediction"].get("probabilities", ()))
    if outcome.label not in labels:
        return Refusal("label", "unknown_label", f"must be one of {', '.join(labels)}, which this prediction was about")
    return None


def _row(outcome: Outcome, prediction: sql.RowMapping, received: datetime) -> dict[str, Any]:
    labels = list(prediction["prediction"]["probabilities"])
    return {
        "prediction": prediction["number"],
        "label": outcome.label,
        "event": outcome.label == labels[-1] if len(labels) == 2 else None,
        "time_us": None if outcome.time is None else microseconds(outcome.time),
        "received_us": microseconds(received),
    }


def judged(connection: sql.Connection, since: datetime) -> list[Judged]:
    """Predictions since then whose outcome is known, by the outcome told last."""
    last = sql.select(sql.func.max(OUTCOMES.c.number)).group_by(OUTCOMES.c.prediction)
    wanted = (
        sql.select(PREDICTIONS.c.model_name, PREDICTIONS.c.model_version, PREDICTIONS.c.probability, OUTCOMES.c.event)
        .join(OUTCOMES, OUTCOMES.c.prediction == PREDICTIONS.c.number)
        .where(OUTCOMES.c.number.in_(last), OUTCOMES.c.event.is_not(None), PREDICTIONS.c.time_us >= microseconds(since))
        .order_by(PREDICTIONS.c.number)
    )
    return [Judged(*row) for row in connection.execute(wanted)]


def forget_outcomes(connection: sql.Connection, of: sql.ColumnElement[bool]) -> None:
    """Delete the outcomes of these predictions."""
    numbers = sql.select(PREDICTIONS.c.number).where(of)
    connection.execute(OUTCOMES.delete().where(OUTCOMES.c.prediction.in_(numbers)))
