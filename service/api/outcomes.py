"""What became of predictions: POST /outcomes tells, and a task measures what predictions of the last months were worth.

A label is a patient's: it goes into the store and nowhere else.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.errors import InvalidInputError, NotFoundError, NotKeptApiError, tell
from service.api.logs import places
from service.api.requests import check_media_type, headline, read_body, read_json, refused
from service.audit.entries import AuditError, Outcome, Refusal
from service.audit.figures import Figures, figures_by_model
from service.bundle.errors import Problem
from service.bundle.manifest import TaskInfo

if TYPE_CHECKING:
    from service.api.metrics import Metrics
    from service.api.runtime import Runtime
    from service.api.settings import Settings
    from service.audit.store import PredictionStore

logger = logging.getLogger("i2moe.outcomes")

MAX_OUTCOMES = 1000  # of one request
_MAX_VERSIONS = 10  # whose figures are exported: those with the most outcomes
_JUDGED_KINDS = ("binary", "multiclass")  # tasks whose truth is one label


class OutcomeItem(BaseModel):
    """What became of one prediction."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    request_id: str = Field(strict=True, min_length=1, max_length=128, description="X-Request-ID of the prediction's answer.")
    position: int = Field(default=0, strict=True, ge=0, lt=2**31, description="Of the instance in its request, from 0.")
    label: str = Field(strict=True, max_length=1000, description="What came true: a label of the prediction.")
    time: AwareDatetime | None = Field(default=None, description="When, with its zone.")


class OutcomesRequest(BaseModel):
    """Outcomes of predictions, whichever requests they belong to."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    outcomes: list[Any] = Field(
        min_length=1, max_length=MAX_OUTCOMES, json_schema_extra={"items": {"$ref": "#/components/schemas/OutcomeItem"}}
    )


class OutcomesResponse(BaseModel):
    """What became of each outcome, in order."""

    accepted: int = Field(description="How many were kept.")
    outcomes: list[dict[str, Any]] = Field(description="`status` ok, or error with `error` as in a prediction's.")


def outcome_routes() -> list[Route]:
    """Telling what became of predictions."""
    return [Route("/outcomes", add_outcomes, methods=["POST"])]


async def add_outcomes(request: Request) -> Response:
    """POST /outcomes: keeps what fits; what does not is told in its place. When none fits, 422."""
    runtime: Runtime = request.app.state.runtime
    task = runtime.require_model().manifest.task
    if runtime.audit is None:
        raise NotFoundError("outcomes belong to predictions that are kept, and this service keeps none (I2MOE_AUDIT_URL)")
    check_media_type(request)
    items = _read(await read_body(request, runtime.settings.max_body_bytes), task)
    good = [item for item in items if isinstance(item, Outcome)]
    try:
        write = partial(runtime.audit.store.add_outcomes, good, received=datetime.now(UTC))
        refusals = iter(await asyncio.to_thread(write))
    except AuditError:
        raise NotKeptApiError("the outcomes could not be kept; try again later") from None
    problems = [_problems(next(refusals), position) if isinstance(x, Outcome) else x for position, x in enumerate(items)]
    if all(problems):
        every = [problem for of_one in problems for problem in of_one]
        raise InvalidInputError(headline(every), every)
    told = OutcomesResponse(accepted=sum(not of_one for of_one in problems), outcomes=[_told(of_one) for of_one in problems])
    return Response(to_json(told), media_type="application/json")


def _read(body: bytes, task: TaskInfo) -> list[Outcome | list[Problem]]:
    """Each item as an outcome, or what is wrong with it."""
    try:
        items = OutcomesRequest.model_validate(read_json(body)).outcomes
    except ValidationError as error:
        raise refused(error) from None
    if task.kind not in _JUDGED_KINDS:
        msg = f"can be told of {' and '.join(_JUDGED_KINDS)} tasks, found a {task.kind} task"
        raise InvalidInputError(f"outcomes {msg}", [Problem(("outcomes",), "task_kind", msg)])
    return [_read_item(item, position) for position, item in enumerate(items)]


def _read_item(item: Any, position: int) -> Outcome | list[Problem]:
    try:
        return Outcome(**OutcomeItem.model_validate(item).model_dump())
    except ValidationError as error:
        return [problem.under("outcomes", position) for problem in refused(error).detail]


def _problems(refusal: Refusal | None, position: int) -> list[Problem]:
    return [] if refusal is None else [Problem(("outcomes", position, refusal.where), refusal.type, refusal.msg)]


def _told(problems: Sequence[Problem]) -> dict[str, Any]:
    if not problems:
        return {"status": "ok"}
    error = {"code": InvalidInputError.code, "message": headline(problems), "detail": tell(problems)}
    return {"status": "error", "error": error}


class OutcomeWatch:
    """Measures again and again what the predictions of the last days were worth. Belongs to the running event loop.

    Every serving process does, from the one store that they share, and a scrape tells the newest of their figures.
    """

    def __init__(self, store: "PredictionStore", settings: "Settings", metrics: "Metrics", *, model_name: str) -> None:
        """Begin to measure, models of this name by their versions."""
        self._store, self._metrics, self.model_name = store, metrics, model_name
        self._every_s, self._window = settings.outcomes_every_s, timedelta(days=settings.outcomes_days)
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
        found = figures_by_model(self._store.judged(datetime.now(UTC) - self._window))
        own = {version: told for (name, version), told in found.items() if name == self.model_name}
        return dict(sorted(own.items(), key=lambda item: -item[1].count)[:_MAX_VERSIONS])

    def _tell(self, found: dict[str, Figures]) -> None:
        """Set the gauges; a version that has no outcomes any more has no figures."""
        for version in self._told - found.keys():
            self._metrics.set_outcomes(version, Figures(0, 0, *[float("nan")] * 3))
        for version, told in found.items():
            self._metrics.set_outcomes(version, told)
        self._told |= found.keys()

    async def close(self) -> None:
        """Measure no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
