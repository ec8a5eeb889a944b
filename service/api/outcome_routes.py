"""POST /outcomes: what became of predictions that are kept.

A label is a patient's: it goes into the store, from there to whoever may read predictions, and nowhere else.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from service.api.access import GuardedRoute
from service.api.audit import Audit
from service.api.errors import InvalidInputError, NotFoundError, NotKeptApiError, tell
from service.api.requests import check_media_type, headline, read_body, read_json, refused
from service.api.scoring import aside, runtime_of, within_deadline
from service.audit.entries import PLAIN_ID, AuditError, Outcome, Refusal
from service.bundle.errors import Problem
from service.bundle.manifest import TaskInfo

MAX_OUTCOMES = 1000  # of one request
_LARGE_BODY_BYTES = 32_768  # beyond it, judging every item would hold up other requests in the event loop for milliseconds
_FIRST, _LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)  # of dates that are no slip
_JUDGED_KINDS = ("binary", "multiclass")  # tasks whose truth is one label


class OutcomeItem(BaseModel):
    """What became of one prediction."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    request_id: str = Field(strict=True, pattern=PLAIN_ID, description="X-Request-ID of the prediction's answer.")
    position: int = Field(default=0, strict=True, ge=0, lt=2**31, description="Of the instance in its request, from 0.")
    label: str = Field(strict=True, max_length=1000, description="What came true: a label of the prediction.")
    time: Annotated[AwareDatetime, Field(ge=_FIRST, lt=_LAST)] | None = Field(default=None, description="When, with its zone.")


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


def outcome_routes() -> list[GuardedRoute]:
    """Telling what became of predictions."""
    return [GuardedRoute("/outcomes", add_outcomes, methods=["POST"], needs="outcomes")]


async def add_outcomes(request: Request) -> Response:
    """POST /outcomes: keeps what fits; what does not is told in its place. When none fits, 422.

    After the deadline the answer is 504, though they may be kept: telling them again changes nothing.
    """
    runtime = runtime_of(request)
    task = runtime.require_model().manifest.task
    if runtime.audit is None:
        raise NotFoundError("outcomes belong to predictions that are kept, and this service keeps none (I2MOE_AUDIT_URL)")
    check_media_type(request)
    return await within_deadline(request, runtime, _answer(request, runtime.audit, task, runtime.settings.max_body_bytes))


async def _answer(request: Request, audit: Audit, task: TaskInfo, max_body_bytes: int) -> Response:
    body = await read_body(request, max_body_bytes)
    items = await aside(partial(_read, body, task), large=len(body) > _LARGE_BODY_BYTES)
    good = [item for item in items if isinstance(item, Outcome)]
    try:
        write = partial(audit.store.add_outcomes, good, received=datetime.now(UTC))
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
