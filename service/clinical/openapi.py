"""The clinical routes in /docs.json: bodies, answers, errors, and examples that work with the served model."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pydantic.json_schema import models_json_schema

from service.api.errors import ApiError, NotFoundError, NotReadyError, PreconditionError, UnauthorizedError
from service.api.openapi import PREDICT_ERRORS
from service.api.openapi_parts import REF, Document, error_responses, json_content, operation, ref, response
from service.bundle.manifest import Manifest
from service.clinical.cards import OVERRIDE_REASONS
from service.clinical.examples import PATIENT_ID, bundle_of, example_prefetch, example_resources
from service.clinical.hooks import PATIENT_VIEW, Cards, Discovery, FeedbackRequest, HookRequest
from service.clinical.prefetch import services

_CALL_ERRORS: tuple[type[ApiError], ...] = (*PREDICT_ERRORS, UnauthorizedError, NotFoundError, PreconditionError)
_ANY = {"type": "object"}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": "Of GET /cds-services."}
_FHIR = "application/fhir+json"


def with_clinical(document: Document, manifest: Manifest | None) -> Document:
    """The document with the paths of CDS Hooks and FHIR, and the schemas that they use."""
    kinds = (HookRequest, Discovery, Cards, FeedbackRequest)
    _, described = models_json_schema([(kind, "validation") for kind in kinds], ref_template=REF)
    components = {"schemas": {**described["$defs"], **document["components"]["schemas"]}}
    return {**document, "paths": {**document["paths"], **_paths(manifest)}, "components": components}


def _paths(manifest: Manifest | None) -> Document:
    found = operation("CDS Hooks 2.0: the services to call", json_content(ref("Discovery")), UnauthorizedError, NotReadyError)
    return {
        "/cds-services": {"get": found},
        "/cds-services/{id}": {"parameters": [_ID], "post": _call(manifest)},
        "/cds-services/{id}/feedback": {"parameters": [_ID], "post": _feedback()},
        "/fhir/RiskAssessment/$evaluate": {"post": _evaluate(manifest)},
    }


def _call(manifest: Manifest | None) -> Document:
    return {
        "summary": "CDS Hooks 2.0: a hook was triggered",
        "description": "Answers a card with the prediction and what it rests on; no card where nothing can be said; 412 where "
        "the prediction needs prefetch that was not sent. The service never calls the FHIR server.",
        "requestBody": _body(json_content(ref("HookRequest")), "application/json", _hook_example(manifest)),
        "responses": {"200": response("At most one card", json_content(ref("Cards"))), **error_responses(_CALL_ERRORS)},
    }


def _body(content: Document, media_type: str, example: Any) -> Document:
    if example is not None:
        content[media_type]["examples"] = {"example": {"summary": "The model's example", "value": example}}
    return {"required": True, "content": content}


def _hook_example(manifest: Manifest | None) -> Document | None:
    offered = services(manifest) if manifest is not None else []
    if manifest is None or not offered:
        return None
    resources = example_resources(manifest.example.record, manifest.features, now=datetime.now(UTC))
    return {
        "hook": PATIENT_VIEW,
        "hookInstance": str(uuid4()),
        "context": {"userId": "Practitioner/example", "patientId": PATIENT_ID},
        "prefetch": example_prefetch(offered[0].prefetch, resources),
    }


def _feedback() -> Document:
    override = {"reason": {"code": next(iter(OVERRIDE_REASONS))}}
    told = {"outcome": "overridden", "overrideReason": override, "outcomeTimestamp": "2026-01-01T12:00:00Z"}
    example = {"feedback": [{"card": str(uuid4()), **told}]}
    errors = [kind for kind in _CALL_ERRORS if kind is not PreconditionError]
    return {
        "summary": "CDS Hooks 2.0: what came of cards",
        "description": "Counted in i2moe_cds_feedback_total; nothing else of it is kept.",
        "requestBody": _body(json_content(ref("FeedbackRequest")), "application/json", example),
        "responses": {"200": response("Counted", json_content(_ANY)), **error_responses(errors)},
    }


def _evaluate(manifest: Manifest | None) -> Document:
    example = None
    if manifest is not None and services(manifest):
        now = datetime.now(UTC)
        example = bundle_of(example_resources(manifest.example.record, manifest.features, now=now), "collection")
    content: Document = {_FHIR: {"schema": _ANY}}
    refusals = error_responses([kind for kind in _CALL_ERRORS if kind not in (NotFoundError, PreconditionError)])
    for refusal in refusals.values():
        refusal["content"] = {_FHIR: {"schema": _ANY}}
    return {
        "summary": "FHIR R4: one patient's resources in a Bundle, answered with a RiskAssessment",
        "description": "Reads Patient, Observation, Condition and DocumentReference by the same rules as CDS Hooks. Every "
        "refusal is an OperationOutcome.",
        "requestBody": _body(content, _FHIR, example),
        "responses": {"200": response("A RiskAssessment", {_FHIR: {"schema": _ANY}}), **refusals},
    }
