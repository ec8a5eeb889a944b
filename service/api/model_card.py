"""GET /model-card: the card as JSON, or as a page for people who ask with a browser."""

from datetime import datetime
from typing import Any

from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.api.model import Model
from service.api.model_card_page import card_page
from service.api.negotiation import media_ranges
from service.api.page import page_headers
from service.api.scoring import runtime_of
from service.api.source_attributes import CITATION, tell_groups
from service.bundle.card import NOTICE
from service.bundle.validity import describe_validity

_JSON, _HTML = "application/json", "text/html"
_VARY = {"Vary": "Accept"}
_STANDARD = {
    "name": "ONC HTI-1 source attributes of predictive decision support interventions",
    "citation": CITATION,
    "status": "The content follows the 31 source attributes that the rule HTI-1, in force since 2025-01-01, asks of certified "
    "health IT. No certification is claimed. A proposed rule, HTI-5 (2025-12-29), would remove this requirement: look up its "
    "status before relying on it.",
}


def show_model_card(request: Request) -> Response:
    """GET /model-card, in the form that the caller prefers. Raises `NotReadyError`."""
    runtime = runtime_of(request)
    card = build_card(runtime.require_model())
    if runtime.settings.page and prefers_html(request.headers):
        return HTMLResponse(card_page(card), headers={**page_headers(), **_VARY})
    return Response(to_json(card), media_type=_JSON, headers=_VARY)


def build_card(model: Model) -> dict[str, Any]:
    """The card, by source attribute; then what else a reader should know."""
    manifest = model.manifest
    attributes = tell_groups(manifest)
    told = manifest.model_dump(mode="json", include={"metrics", "calibration", "uncertainty", "parity", "provenance"})
    provenance = {name: value for name, value in told.pop("provenance").items() if name != "recipe"}
    return {
        "notice": NOTICE,
        "model": model.info,
        "created": _day(manifest.created),
        "outcome": manifest.task.outcome,
        "licence": manifest.model_card.stated("licence"),
        "standard": _STANDARD,
        "counts": _counts(attributes),
        "source_attributes": attributes,
        **told,
        "explanations": [line.removeprefix("  explained    ") for line in describe_validity(manifest.explanation_validity)],
        "provenance": provenance,
    }


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


def _counts(groups: dict[str, Any]) -> dict[str, int]:
    """How many attributes have each status."""
    found = [attribute["status"] for group in groups.values() for attribute in group["attributes"].values()]
    return {status: found.count(status) for status in ("provided", "partly provided", "not provided")}


def prefers_html(headers: Headers) -> bool:
    """Whether the Accept header wants a page rather than JSON. A tie, and whatever it does not say, means JSON."""
    accepted = ", ".join(headers.getlist("accept"))
    return _quality(accepted, _HTML) > _quality(accepted, _JSON)


def _quality(accepted: str, media_type: str) -> float:
    """How much a media type is wanted, 0 to 1, by the most specific range that covers it (RFC 9110, 12.5.1)."""
    wanted = media_ranges(accepted)
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((wanted[name] for name in ranges if name in wanted), 0.0)
