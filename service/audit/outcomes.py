"""What became of predictions: kept beside them, and read together with them."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sql

from service.audit.entries import Judged, KeptOutcome, Outcome, Refusal
from service.audit.tables import OUTCOMES, PREDICTIONS, microseconds, moment

_Key = tuple[str, int]
_READ_AT_ONCE = 10_000  # predictions with outcomes: a year has a million


class _Found(NamedTuple):
    """The predictions under one request id and position: how many, and the first of them."""

    num_predictions: int
    number: int
    prediction: dict[str, Any]


def add_outcomes(connection: sql.Connection, outcomes: Sequence[Outcome], *, received: datetime) -> list[Refusal | None]:
    """Keep those that fit a prediction; answers for each why it does not, or None."""
    found = _predictions(connection, outcomes)
    refusals = [_refusal(outcome, found.get((outcome.request_id, outcome.position))) for outcome in outcomes]
    rows = [
        _row(outcome, found[outcome.request_id, outcome.position], received)
        for outcome, refusal in zip(outcomes, refusals, strict=True)
        if refusal is None
    ]
    if rows:
        connection.execute(OUTCOMES.insert(), rows)
    return refusals


def _predictions(connection: sql.Connection, outcomes: Sequence[Outcome]) -> dict[_Key, _Found]:
    """The predictions that are named.

    Counted before they are read: a client may put one request id on everything it ever asks.
    """
    table, count = PREDICTIONS.c, sql.func.count()
    counted = (
        sql.select(table.request_id, table.position, count, sql.func.min(table.number), sql.func.max(table.number))
        .where(table.request_id.in_({one.request_id for one in outcomes}))
        .group_by(table.request_id, table.position)
    )
    named = {(one.request_id, one.position) for one in outcomes}
    spans = {(name, position): span for name, position, *span in connection.execute(counted) if (name, position) in named}
    ends = {number for _, *numbers in spans.values() for number in numbers}
    wanted = sql.select(table.number, table.model_sha256, table.prediction).where(table.number.in_(ends))
    rows = {row["number"]: row for row in connection.execute(wanted).mappings()}
    return {key: _found(count, rows[first], rows[last]) for key, (count, first, last) in spans.items()}


def _found(count: int, first: sql.RowMapping, last: sql.RowMapping) -> _Found:
    """Two equal answers of one bundle are one: a client whose connection broke asks again under the same id."""
    same = all(first[name] == last[name] for name in ("model_sha256", "prediction"))
    return _Found(1 if same and count == 2 else count, first["number"], first["prediction"])


def _refusal(outcome: Outcome, found: _Found | None) -> Refusal | None:
    if found is None:
        return Refusal("request_id", "unknown_prediction", "no prediction is kept under this request id and position")
    if found.num_predictions > 1:
        msg = f"expected one prediction under this request id and position to belong to, found {found.num_predictions}"
        return Refusal("request_id", "ambiguous_prediction", msg)
    labels = list(found.prediction.get("probabilities", ()))
    if outcome.label not in labels:
        return Refusal("label", "unknown_label", f"must be one of {', '.join(labels)}, which this prediction was about")
    return None


def _row(outcome: Outcome, found: _Found, received: datetime) -> dict[str, Any]:
    labels = list(found.prediction["probabilities"])
    stated = labels[-1] if len(labels) == 2 else found.prediction["label"]
    return {
        "prediction": found.number,
        "label": outcome.label,
        "event": outcome.label == stated,
        "time_us": None if outcome.time is None else microseconds(outcome.time),
        "received_us": microseconds(received),
    }


def outcomes_of(connection: sql.Connection, predictions: Sequence[int]) -> dict[int, tuple[KeptOutcome, ...]]:
    """What was told of the predictions of these numbers, in the order in which it was."""
    told: dict[int, list[KeptOutcome]] = {number: [] for number in predictions}
    wanted = sql.select(OUTCOMES).where(OUTCOMES.c.prediction.in_(predictions)).order_by(OUTCOMES.c.number)
    for row in connection.execute(wanted).mappings():
        time = None if row["time_us"] is None else moment(row["time_us"])
        told[row["prediction"]].append(KeptOutcome(row["label"], time, moment(row["received_us"])))
    return {number: tuple(outcomes) for number, outcomes in told.items()}


def judged(connection: sql.Connection, since: datetime, until: datetime) -> Iterator[Judged]:
    """Predictions of that time whose outcome is known, by the outcome told last; some thousands at a time are in memory."""
    last = sql.select(sql.func.max(OUTCOMES.c.number)).group_by(OUTCOMES.c.prediction)
    wanted = (
        sql.select(PREDICTIONS.c.model_name, PREDICTIONS.c.model_version, PREDICTIONS.c.probability, OUTCOMES.c.event)
        .join(OUTCOMES, OUTCOMES.c.prediction == PREDICTIONS.c.number)
        .where(
            OUTCOMES.c.number.in_(last),
            OUTCOMES.c.event.is_not(None),
            PREDICTIONS.c.probability.is_not(None),  # none is stated for regression, which has no events either
            PREDICTIONS.c.time_us.between(microseconds(since), microseconds(until)),
        )
        .order_by(PREDICTIONS.c.number)
    )
    for row in connection.execution_options(yield_per=_READ_AT_ONCE).execute(wanted):
        yield Judged(*row)
