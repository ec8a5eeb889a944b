"""What is kept of one prediction, and what is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Words that may hold a patient's values, such as "labs.crea 14.2 is outside the range seen in training".
_WORDED = frozenset({"warnings"})
_WORDED_IN_EXPLANATION = frozenset({"summary"})
_OF_FEATURES = frozenset({"features", "rest", "base", "gap"})


class AuditError(RuntimeError):
    """The store cannot be opened, written or read; the message holds no password and no value."""


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
