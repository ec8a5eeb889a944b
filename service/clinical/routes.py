"""The routes of CDS Hooks and FHIR; the only module here that knows the web framework.

Scores with everything that /predict scores with: batcher, deadline, metrics, errors.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.background import BackgroundTask
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.tokens import TokenError
from service.api.access import GuardedRoute
from service.api.errors import InvalidInputError, NotFoundError, PreconditionError, UnauthorizedError
from service.api.model import Model
from service.api.negotiation import FHIR_JSON
from service.api.predictions import predict_instances
from service.api.requests import Instance, ParsedRequest, Unread, check_media_type, read_body, read_instance, read_json, refused
from service.api.runtime import Runtime
from service.api.scoring import runtime_of, timed, within_deadline
from service.bundle.answers import Prediction
from service.bundle.errors import Problem
from service.bundle.manifest import Manifest
from service.bundle.schema import FeatureSchema
from service.clinical.cards import OVERRIDE_REASONS, build_card
from service.clinical.hooks import ENCOUNTER_DISCHARGE, FeedbackRequest, HookRequest
from service.clinical.prefetch import CdsService, discovery, services
from service.clinical.record import MappedRecord, map_record
from service.clinical.resources import objects, only_patient, read_resources
from service.clinical.risk_assessment import answer_document
from service.clinical.settings import ClinicalSettings
from service.clinical.tokens import TokenVerifier
from service.clinical.units import prepare

logger = logging.getLogger("i2moe.clinical")
_Answer = Callable[[Request, Runtime], Awaitable[Response]]
_M = TypeVar("_M", bound=BaseModel)


class Gate:
    """Who may call the clinical routes, and from which browser pages."""

    def __init__(self, settings: ClinicalSettings, *, is_guarded: bool) -> None:
        """Without issuers everybody may call whom nothing else keeps out (`is_guarded`), and the log says so."""
        self.settings = settings
        self._verifier = TokenVerifier(settings) if settings.issuers else None
        if self._verifier is None and not is_guarded:
            logger.warning("I2MOE_CDS_ISSUERS is not set: whoever reaches this service may call its CDS Hooks and FHIR routes")

    async def check(self, request: Request) -> None:
        """Raises `UnauthorizedError` where the caller is not trusted."""
        if self._verifier is not None:
            try:
                await self._verifier.check(request.headers.get("authorization", ""), path=request.url.path)
            except TokenError as error:
                raise UnauthorizedError(str(error)) from None


def clinical_routes() -> list[GuardedRoute]:
    """Discovery, calls and feedback of CDS Hooks 2.0, and FHIR's $evaluate."""
    return [
        _route("/cds-services", "GET", _discover),
        _route("/cds-services/{id}", "POST", _call),
        _route("/cds-services/{id}/feedback", "POST", _feedback),
        _route("/fhir/RiskAssessment/$evaluate", "POST", _evaluate),
    ]


def _route(path: str, method: str, answer: _Answer) -> GuardedRoute:
    async def endpoint(request: Request) -> Response:
        runtime = runtime_of(request)
        return await within_deadline(request, runtime, _checked(answer, request, runtime))

    from_browsers = _FromBrowsers(request_response(endpoint), method)
    return GuardedRoute(path, from_browsers, methods=[method, "OPTIONS"], needs="predict", has_own_tokens=True)


async def _checked(answer: _Answer, request: Request, runtime: Runtime) -> Response:
    gate: Gate = request.app.state.gate
    await gate.check(request)
    return await answer(request, runtime)


class _FromBrowsers:
    """ASGI: CORS headers and preflights for the origins of the settings, which are known when the server has started."""

    def __init__(self, app: ASGIApp, method: str) -> None:
        self._app, self._method = app, method
        self._with_cors: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = scope["app"].state.gate.settings.origins
        if self._with_cors is None and origins:
            self._with_cors = CORSMiddleware(
                self._serve,
                allow_origins=origins,
                allow_methods=[self._method],
                allow_headers=["Authorization", "Content-Type"],
            )
        await (self._with_cors or self._serve)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["method"] != "OPTIONS" else PlainTextResponse("", 405, {"Allow": self._method})
        await app(scope, receive, send)


async def _discover(_: Request, runtime: Runtime) -> Response:
    """GET /cds-services. Who asks will call soon, so what calls need is loaded once the answer is out."""
    offered = discovery(runtime.require_model().manifest)
    return JSONResponse(offered, background=BackgroundTask(prepare) if offered["services"] else None)


def _service(request: Request, manifest: Manifest) -> CdsService:
    """The service that the path names."""
    for service in services(manifest):
        if service.id == request.path_params["id"]:
            return service
    raise NotFoundError("there is no service of this id; GET /cds-services names those that there are")


class _Hook(NamedTuple):
    """A call that was read: what it lacks, and its record, which has no encoding where it says too little."""

    missing: list[str]
    mapped: MappedRecord
    instance: Instance
    unread: Unread


class _Evaluated(NamedTuple):
    """A Bundle that was read."""

    mapped: MappedRecord
    instance: Instance
    unread: Unread


async def _call(request: Request, runtime: Runtime) -> Response:
    """POST /cds-services/{id}: a card, no card, or 412 with what the prediction lacks."""
    model = runtime.require_model()
    service = _service(request, model.manifest)
    check_media_type(request)
    body = await read_body(request, runtime.settings.max_body_bytes)
    with timed(runtime.metrics.preprocess, "read"):
        hook = await asyncio.to_thread(_read_hook, body, service, model.manifest)
    if hook.instance.encoded is None:
        if hook.missing:
            raise _lacking(service, hook.missing)
        runtime.metrics.cards.labels("none").inc()
        return JSONResponse({"cards": []})
    prediction = await _predict(request, hook.instance, hook.unread, runtime, model)
    card = build_card(prediction, hook.mapped, model.manifest, model=model.info, base_url=runtime.clinical.public_url)
    runtime.metrics.cards.labels(card["indicator"]).inc()
    return Response(to_json({"cards": [card]}), media_type="application/json")


def _read_hook(body: bytes, service: CdsService, manifest: Manifest) -> _Hook:
    now = datetime.now(UTC)
    missing, mapped = _map_hook(body, service, manifest.features, now)
    unread = Unread(lambda reader: [_map_hook(body, service, reader.schema, now)[1].record], len(body))
    return _Hook(missing, mapped, read_instance(mapped.record, (), manifest.features), unread)


def _map_hook(body: bytes, service: CdsService, schema: FeatureSchema, now: datetime) -> tuple[list[str], MappedRecord]:
    """Keys of prefetch that were not sent, and the record by these features."""
    hook = _validated(HookRequest, body)
    if hook.hook != service.hook:
        msg = f"must be {service.hook}, which this service is for"
        raise InvalidInputError(f"hook {msg}", [Problem(("hook",), "wrong_hook", msg)])
    if hook.hook == ENCOUNTER_DISCHARGE and not hook.context.encounter_id:
        msg = f"is required by {ENCOUNTER_DISCHARGE}"
        raise InvalidInputError(f"context.encounterId {msg}", [Problem(("context", "encounterId"), "missing", msg)])
    prefetch = hook.prefetch or {}
    cut = [key for key, document in prefetch.items() if _has_more_pages(document)]
    missing = service.missing(prefetch)
    mapped = map_record(
        read_resources(prefetch.values()),
        schema,
        patient_id=hook.context.patient,
        now=now,
        conditions_known="conditions" not in {*missing, *cut},
    )
    not_sent = [f"prefetch {key} was not sent" for key in missing]
    paged = [f"prefetch {key} has more pages, which were not sent" for key in cut if key in service.prefetch]
    return missing, replace(mapped, unusable=(*not_sent, *paged, *mapped.unusable))


def _has_more_pages(document: object) -> bool:
    links = objects(document.get("link")) if isinstance(document, dict) else []
    return any(link.get("relation") == "next" for link in links)


def _lacking(service: CdsService, missing: list[str]) -> PreconditionError:
    problems = [
        Problem(("prefetch", key), "missing", f"is needed and was not sent; expected the answer to {service.prefetch[key]}")
        for key in missing
    ]
    return PreconditionError(f"nothing can be predicted without prefetch: {', '.join(missing)}", problems)


def _validated(kind: type[_M], body: bytes) -> _M:
    try:
        return kind.model_validate(read_json(body))
    except ValidationError as error:
        raise refused(error) from None


async def _predict(request: Request, instance: Instance, unread: Unread, runtime: Runtime, model: Model) -> Prediction:
    parsed = ParsedRequest([instance], explain=True, with_features=False, unread=unread)
    return (await predict_instances(parsed, runtime, model, request=request)).predictions[0]


async def _feedback(request: Request, runtime: Runtime) -> Response:
    """POST /cds-services/{id}/feedback: counted, and nothing of it kept."""
    _service(request, runtime.require_model().manifest)
    check_media_type(request)
    body = await read_body(request, runtime.settings.max_body_bytes)
    for told in _validated(FeedbackRequest, body).feedback:
        given = told.override_reason.reason if told.override_reason is not None else None
        reason = "none" if given is None else given.code if given.code in OVERRIDE_REASONS else "other"
        runtime.metrics.feedback.labels(told.outcome, reason).inc()
    return JSONResponse({})


async def _evaluate(request: Request, runtime: Runtime) -> Response:
    """POST /fhir/RiskAssessment/$evaluate: a Bundle of one patient's resources, answered with a RiskAssessment."""
    model = runtime.require_model()
    check_media_type(request)
    body = await read_body(request, runtime.settings.max_body_bytes)
    with timed(runtime.metrics.preprocess, "read"):
        mapped, instance, unread = await asyncio.to_thread(_read_bundle, body, model.manifest)
    prediction = await _predict(request, instance, unread, runtime, model)
    notes = [*prediction["warnings"], *mapped.remarks, *(f"Not used: {sentence}" for sentence in mapped.unusable)]
    write = partial(answer_document, manifest=model.manifest, sha256=model.bundle.sha256, basis=mapped.basis)
    return Response(to_json(write([prediction | {"warnings": notes}])), media_type=FHIR_JSON)


def _read_bundle(body: bytes, manifest: Manifest) -> _Evaluated:
    now = datetime.now(UTC)
    mapped = _map_bundle(body, manifest.features, now)
    instance = read_instance(mapped.record, (), manifest.features)
    unusable = tuple(Problem(("entry",), "unusable", sentence) for sentence in mapped.unusable)
    instance = replace(instance, problems=instance.problems and (*instance.problems, *unusable))
    return _Evaluated(mapped, instance, Unread(lambda reader: [_map_bundle(body, reader.schema, now).record], len(body)))


def _map_bundle(body: bytes, schema: FeatureSchema, now: datetime) -> MappedRecord:
    """The record by these features."""
    document: dict[str, Any] = read_json(body)
    if document.get("resourceType") != "Bundle":
        msg = "must be Bundle, of one patient's resources"
        raise InvalidInputError(f"resourceType {msg}", [Problem(("resourceType",), "resource_type", msg)])
    resources = read_resources([document])
    patient_id = only_patient(resources)
    if patient_id is None:
        msg = "must be about one patient with an id, found none or several"
        raise InvalidInputError(f"entry {msg}", [Problem(("entry",), "patient", msg)])
    return map_record(resources, schema, patient_id=patient_id, now=now)
