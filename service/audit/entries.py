"""What is kept of one prediction, and what is not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

PLAIN_ID = r"^[A-Za-z0-9._-]{1,128}$"  # of a request; the service takes over no other, so nothing is kept under one
_PLAIN = re.compile(PLAIN_ID)
# Words that may hold a patient's values, such as "labs.crea 14.2 is outside the range seen in training".
_WORDED = frozenset({"warnings"})
_WORDED_IN_EXPLANATION = frozenset({"summary"})
_OF_FEATURES = frozenset({"features", "rest", "base", "gap"})


def is_plain_id(text: str) -> bool:
    """Whether a request id may be taken over: into an answer's header, a log line and the store."""
    return _PLAIN.fullmatch(text) is not None


class AuditError(RuntimeError):
    """The store cannot be opened, written or read; the message holds no password and no value."""


class KeptOutcome(NamedTuple):
    """What was told of a prediction afterwards."""

    label: str
    time: datetime | None  # when it happened, where that was told
    received: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One prediction as it was answered.

    `model` is name, version and sha256 of the bundle: the same bundle answers the same record in the same way, for ever.
    """

    request_id: str
    position: int  # of the instance in its request
    time: datetime  # with its zone
    model: Mapping[str, str]
    prediction: Mapping[str, Any]
    record: Mapping[str, Any] | None = None  # what was asked; only where features are kept
    outcomes: tuple[KeptOutcome, ...] = ()  # told later, the last one counts; not written with the prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one prediction."""

    request_id: str
    position: int
    label: str
    time: datetime | None = None  # when it happened, with its zone


class Refusal(NamedTuple):
    """Why an outcome was not kept: the part that is wrong, a stable word and a sentence without a value."""

    where: str
    type: str
    msg: str


class Judged(NamedTuple):
    """A prediction whose outcome is known."""

    model_name: str
    model_version: str
    probability: float  # that was stated: of two labels of the last one (the risk), of more of the predicted one
    event: bool  # whether that label came true


def without_values(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction without what tells of a patient's values: its id, its warnings, its sentence, and features of experts."""
    kept = {name: value for name, value in prediction.items() if name not in _WORDED and name != "id"}
    if "explanation" in kept:
        explanation = {name: value for name, value in kept["explanation"].items() if name not in _WORDED_IN_EXPLANATION}
        experts = [
            {name: value for name, value in expert.items() if name not in _OF_FEATURES} for expert in explanation["experts"]
        ]
        kept["explanation"] = explanation | {"experts": experts}
    return kept
