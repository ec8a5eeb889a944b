"""Keeping every prediction that is answered, where I2MOE_AUDIT_URL says so.

Where keeping is required, a prediction is on the disk before its answer leaves; one that cannot be kept is not given.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from service.api.errors import NotKeptApiError
from service.audit.entries import AuditEntry, without_values
from service.audit.writer import AuditWriter, NotKeptError
from service.bundle.answers import Prediction
from service.bundle.features import FloatArray

if TYPE_CHECKING:
    from service.api.metrics import Metrics
    from service.api.settings import Settings
    from service.audit.store import PredictionStore

MAX_WAITING = 10_000  # predictions that may wait to be written

Rows = Mapping[str, FloatArray]


class Audit:
    """What a serving process keeps, and how."""

    def __init__(self, store: "PredictionStore", settings: "Settings", metrics: "Metrics") -> None:
        """Begin to write; belongs to the running event loop."""
        self.store = store
        self._required, self._with_features = settings.audit_required, settings.audit_features
        counter = metrics.audit
        self._writer = AuditWriter(store, max_waiting=MAX_WAITING, on_outcome=lambda outcome, n: counter.labels(outcome).inc(n))

    async def keep(
        self, predictions: Sequence[Prediction], rows: Sequence[Rows], *, request_id: str, model: Mapping[str, str]
    ) -> None:
        """Keep the predictions of a request that succeeded; `rows` are what was scored for them, in order.

        Raises `NotKeptApiError` where keeping is required and failed.
        """
        time = datetime.now(UTC)
        encoded = iter(rows)
        entries = [
            AuditEntry(
                request_id=request_id,
                position=position,
                time=time,
                model=model,
                prediction=prediction if self._with_features else without_values(prediction),
                record=_record(next(encoded)) if self._with_features else None,
            )
            for position, prediction in enumerate(predictions)
            if prediction["status"] == "ok"
        ]
        if not entries:
            return
        kept = self._writer.submit(entries)
        if self._required:
            try:
                await kept
            except NotKeptError:
                raise NotKeptApiError("the prediction could not be kept, which this service must do; try again later") from None

    async def close(self) -> None:
        """Write what was handed over."""
        await self._writer.close()


def _record(rows: Rows) -> dict[str, Any]:
    """What was scored as flat vectors, null where missing: sent to /predict, it is scored again."""
    return {name: _cells(row) for name, row in rows.items()}


def _cells(row: FloatArray) -> list[float | None]:
    """JSON has no NaN. By its places, since most cells have none: a look at each of a large request's held up the event loop."""
    cells: list[float | None] = row.tolist()
    for place in np.flatnonzero(np.isnan(row)).tolist():
        cells[place] = None
    return cells


def open_audit(settings: "Settings") -> "PredictionStore | None":
    """The store that the settings name. Raises `AuditError`, and `ModuleNotFoundError` saying what to install."""
    if settings.audit_url is None:
        return None
    from service.audit.store import PredictionStore

    return PredictionStore(settings.audit_url.get_secret_value(), keep_days=settings.audit_keep_days)
