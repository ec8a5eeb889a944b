"""What predictions were worth: measured again and again by their outcomes, for GET /metrics.

A label is a patient's: what leaves the store here is figures of many.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from service.api.logs import places
from service.audit.entries import AuditError
from service.audit.figures import Figures, figures, figures_by_model

if TYPE_CHECKING:
    from service.api.metrics import Metrics
    from service.api.settings import Settings
    from service.audit.store import PredictionStore

logger = logging.getLogger("i2moe.outcomes")

_MAX_VERSIONS = 10  # whose figures are exported: those with the most outcomes


class OutcomeWatch:
    """Measures again and again what the predictions of the last days were worth. Belongs to the running event loop.

    Every serving process does, from the one store that they share, and a scrape tells the newest of their figures.
    """

    def __init__(self, store: "PredictionStore", settings: "Settings", metrics: "Metrics", *, model_name: str) -> None:
        """Begin to measure, models of this name by their versions."""
        self._store, self._metrics, self.model_name = store, metrics, model_name
        self._every_s = settings.outcomes_every_s
        self._delay, self._window = timedelta(days=settings.outcomes_delay_days), timedelta(days=settings.outcomes_days)
        self._told: set[str] = set()
        self._task = asyncio.create_task(self._measure_for_ever(), name="outcomes")

    async def _measure_for_ever(self) -> None:
        while True:
            try:
                self._tell(await asyncio.to_thread(self._measure))
            except AuditError as error:
                logger.warning("outcomes were not measured: %s", error)
            except Exception as error:  # the next time is another chance
                logger.error("outcomes were not measured: %s", places(error))  # noqa: TRY400 - never the text
            await asyncio.sleep(self._every_s)

    def _measure(self) -> dict[str, Figures]:
        until = datetime.now(UTC) - self._delay
        found = figures_by_model(self._store.judged(until - self._window, until))
        own = {version: told for (name, version), told in found.items() if name == self.model_name}
        return dict(sorted(own.items(), key=lambda item: -item[1].count)[:_MAX_VERSIONS])

    def _tell(self, found: dict[str, Figures]) -> None:
        """Set the gauges; a version that has no outcomes any more has no figures."""
        for version in self._told - found.keys():
            self._metrics.set_outcomes(version, figures([], []))
        for version, told in found.items():
            self._metrics.set_outcomes(version, told)
        self._told |= found.keys()

    async def close(self) -> None:
        """Measure no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
