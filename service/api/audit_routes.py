"""GET /predictions/{request_id}: what was answered, as it was kept."""

from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from service.api.access import GuardedRoute
from service.api.errors import NotFoundError, NotReadyError
from service.api.scoring import runtime_of
from service.audit.entries import AuditEntry, AuditError, is_plain_id

_TOLD = ("time", "position", "model", "prediction", "record")


def audit_routes() -> list[GuardedRoute]:
    """Reading what was kept."""
    return [GuardedRoute("/predictions/{request_id}", show_predictions, needs="audit")]


def show_predictions(request: Request) -> Response:
    """GET /predictions/{request_id}: what was answered then, by which bundle, and what became of it.

    A plain function: it waits for a database.
    """
    runtime = runtime_of(request)
    request_id = request.path_params["request_id"]
    try:
        found = [] if runtime.audit is None or not is_plain_id(request_id) else runtime.audit.store.find(request_id)
    except AuditError:
        raise NotReadyError("kept predictions cannot be read now") from None
    if not found:
        raise NotFoundError("no prediction is kept under this request id")
    told = [_told(entry) for entry in found]
    return Response(to_json({"request_id": found[0].request_id, "predictions": told}), media_type="application/json")


def _told(entry: AuditEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in _TOLD} | {"outcomes": [outcome._asdict() for outcome in entry.outcomes]}
