"""GET /docs.json: an OpenAPI 3.1 document, generated from the wire models and the served model's feature schema."""

from pydantic.json_schema import models_json_schema

from service.api import models
from service.api.errors import (
    ApiError,
    BodyTooLargeError,
    DeadlineError,
    ForbiddenError,
    InferenceFailedError,
    InternalError,
    InvalidInputError,
    InvalidJsonError,
    MediaTypeError,
    NotFoundError,
    NotKeptApiError,
    NotReadyError,
    OverloadedError,
    RateLimitedError,
    ReloadFailedError,
    UnauthorizedError,
)
from service.api.openapi_parts import REF, Document, error_responses, json_content, operation, ref, response
from service.api.outcome_routes import OutcomeItem, OutcomesRequest, OutcomesResponse
from service.api.tensors import HEADER_LENGTH, InferRequest
from service.bundle.manifest import Manifest
from service.bundle.schema import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    EmbeddedTextFeature,
    Feature,
    FeatureSchema,
    Modality,
    NumericFeature,
    TextFeature,
)

API_VERSION = "1.4.0"  # of the HTTP interface, by semantic versioning; models have their own

ACCESS_ERRORS: tuple[type[ApiError], ...] = (UnauthorizedError, ForbiddenError, RateLimitedError)  # where there are keys
PREDICT_ERRORS: tuple[type[ApiError], ...] = (
    *ACCESS_ERRORS,
    InvalidJsonError,
    BodyTooLargeError,
    MediaTypeError,
    InvalidInputError,
    InternalError,
    InferenceFailedError,
    OverloadedError,
    NotReadyError,
    NotKeptApiError,
    DeadlineError,
)
_GUARDED = (*ACCESS_ERRORS, NotReadyError)
_EXPLAINED_KINDS = {
    "numeric": "a number",
    "categorical": "a category",
    "codes": "a list of codes",
    "text": "text",
    "embedded_text": "text, of which the beginning is read; a warning says so where it is longer",
    "array": "an array of numbers",
}


def build_openapi(manifest: Manifest | None) -> Document:
    """The document; without a manifest (no model is ready yet) records are any objects."""
    return {
        "openapi": "3.1.0",
        "info": _info(manifest),
        "paths": _paths(manifest),
        "components": {
            "schemas": {**_wire_schemas(), "Record": record_schema(manifest.features) if manifest else _ANY_RECORD},
        },
    }


_ANY_RECORD: Document = {
    "type": "object",
    "description": "Per modality an object of named features or a flat vector. The features appear here once a model is ready.",
}


def _info(manifest: Manifest | None) -> Document:
    outcome = f" Predicts {manifest.task.outcome}." if manifest else ""
    served = f" Serves {manifest.name} {manifest.version}." if manifest else ""
    return {
        "title": "I2MoE risk service",
        "version": API_VERSION,
        "description": f"Multimodal predictions that explain themselves.{outcome}{served} Every answer that is not a success "
        "has the shape of ErrorResponse, 404 and 405 included.",
    }


def _wire_schemas() -> Document:
    wire = (
        models.PredictRequest,
        models.PredictResponse,
        models.ErrorResponse,
        models.ModelResponse,
        models.ModelCardResponse,
        models.ExplanationsResponse,
        models.KeptPredictionsResponse,
        InferRequest,
        OutcomesRequest,
        OutcomeItem,
        OutcomesResponse,
    )
    _, document = models_json_schema([(model, "validation") for model in wire], ref_template=REF)
    schemas: Document = document["$defs"]
    return schemas


_RELOADED: Document = {
    "changed": {"type": "boolean"},
    "model": ref("ModelInfo"),
    "shadow": {"anyOf": [ref("ShadowInfo"), {"type": "null"}]},
}


def _paths(manifest: Manifest | None) -> Document:
    text: Document = {"text/plain": {"schema": {"type": "string"}}}
    page: Document = {"text/html": {"schema": {"type": "string"}}}
    return {
        "/predict": {"post": _predict_operation(manifest)},
        "/model": {
            "get": operation("What is served: features, task, figures, card", json_content(ref("ModelResponse")), *_GUARDED)
        },
        "/model-card": {
            "get": operation(
                "The model card, as JSON or, to browsers, as a page",
                {**json_content(ref("ModelCardResponse")), **page},
                *_GUARDED,
            )
        },
        "/explanations": {"get": operation("How the experts behave", json_content(ref("ExplanationsResponse")), *_GUARDED)},
        "/admin/reload": {
            "post": operation(
                "Serve the bundle that is there now, if it is another; of the process that answers",
                json_content({"type": "object", "properties": _RELOADED}),
                ReloadFailedError,
                *_GUARDED,
            )
        },
        "/predictions/{request_id}": {
            "parameters": [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": operation(
                "What was answered to a request, and what became of it, where predictions are kept",
                json_content(ref("KeptPredictionsResponse")),
                NotFoundError,
                *_GUARDED,
            ),
        },
        "/outcomes": {"post": _outcomes_operation()},
        "/metrics": {"get": operation("Prometheus metrics", text, *ACCESS_ERRORS)},
        "/docs.json": {"get": operation("This document, OpenAPI 3.1", json_content({"type": "object"}))},
        "/livez": {"get": operation("Whether the process lives", text)},
        "/readyz": {"get": operation("Whether a model is ready to answer", text, NotReadyError)},
        **_page_paths(page),
        **_protocol_paths(),
    }


def _outcomes_operation() -> Document:
    unread = (InvalidJsonError, NotFoundError, BodyTooLargeError, MediaTypeError, InvalidInputError)
    errors = (*_GUARDED, *unread, NotKeptApiError, DeadlineError)
    return {
        "summary": "Tell what became of predictions, where they are kept",
        "description": "Outcomes that fit no prediction are answered with `status: error` beside the others; when none fits, the "
        "answer is 422. Of several outcomes of one prediction the last counts.",
        "requestBody": {"required": True, "content": json_content(ref("OutcomesRequest"))},
        "responses": {
            "200": response("What became of each, in order", json_content(ref("OutcomesResponse"))),
            **error_responses(errors),
        },
    }


def _page_paths(page: Document) -> Document:
    """The page for people; where I2MOE_PAGE is false, / leads to this document and there are no files."""
    files: Document = {name: {"schema": {"type": "string"}} for name in ("text/css", "text/javascript")}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/": {"get": operation("A page for people: a form, risks, explanations, what-if", page)},
        "/static/{name}": {"parameters": [name], "get": operation("A file of the page", files, NotFoundError)},
    }


def _protocol_paths() -> Document:
    """The Open Inference Protocol, whose own documents say more."""
    described = json_content({"type": "object"})
    paths: Document = {
        "/v2": {"get": operation("Open Inference Protocol: this server and its extensions", described)},
        "/v2/health/live": {"get": operation("Whether the process lives", described)},
        "/v2/health/ready": {"get": operation("Whether a model is ready to answer", described, NotReadyError)},
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    version = name | {"name": "version"}
    for path, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        about = operation("The model's inputs and outputs with types and shapes", described, NotFoundError, NotReadyError)
        ready = operation("Whether this model is ready", described, NotFoundError, NotReadyError)
        paths[path] = {"parameters": parameters, "get": about}
        paths[f"{path}/ready"] = {"parameters": parameters, "get": ready}
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer_operation()}
    return paths


def _infer_operation() -> Document:
    any_bytes: Document = {"application/octet-stream": {"schema": {"type": "string", "contentEncoding": "binary"}}}
    answer = response("The outputs that were asked for", {**json_content({"type": "object"}), **any_bytes})
    return {
        "summary": "Score records given as tensors of flat vectors",
        "description": f"Numbers are JSON, or bytes after the JSON part, whose length the header {HEADER_LENGTH} then says (the "
        "protocol's binary tensor data extension). NaN, or null in JSON, is a missing value. One record that does not fit "
        "refuses the request.",
        "requestBody": {"required": True, "content": {**json_content(ref("InferRequest")), **any_bytes}},
        "responses": {"200": answer, **error_responses((NotFoundError, *PREDICT_ERRORS))},
    }


def _predict_operation(manifest: Manifest | None) -> Document:
    body: Document = {"schema": {"anyOf": [ref("PredictRequest"), ref("Record")]}}
    if manifest:
        record = manifest.example.record
        body["examples"] = {
            "many": {"summary": "One or many records", "value": {"instances": [record], "explain": True}},
            "one": {"summary": "A single record as it is", "value": record},
        }
    fhir: Document = {"application/fhir+json": {"schema": {"type": "object"}}}
    content = {**json_content(ref("PredictResponse")), **fhir}
    answer = response("The predictions, in the order of the instances", content)
    return {
        "summary": "Score one record or many, with explanations",
        "description": "Instances that do not fit are answered with `status: error` beside the others; when none fits, "
        "the answer is 422. An X-Request-ID of up to 128 plain characters is kept. With `Accept: application/fhir+json` one "
        "instance is answered with a FHIR R4 RiskAssessment, several with a Bundle, and refusals are OperationOutcomes.",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": answer, **error_responses(PREDICT_ERRORS)},
    }


def record_schema(features: FeatureSchema) -> Document:
    """What one record of this model may hold."""
    modalities = {modality.name: _modality_schema(modality) for modality in features.modalities}
    identity = {"type": ["string", "integer", "null"], "description": "Comes back with the prediction."}
    return {
        "type": "object",
        "description": "One record: per modality its named features, or its flat vector.",
        "properties": {"id": identity, **modalities},
        "required": list(features.names) if features.missing == "reject" else [],
        "additionalProperties": False,
    }


def _modality_schema(modality: Modality) -> Document:
    named = {
        "type": "object",
        "properties": {feature.name: feature_schema(feature) for feature in modality.features},
        "additionalProperties": False,
    }
    vector = {
        "type": "array",
        "description": f"The flat vector: {', '.join(f'{f.name} ({f.width})' for f in modality.features)}. Null: missing.",
        "items": {"type": ["number", "null"]},
        "minItems": modality.width,
        "maxItems": modality.width,
    }
    return {"anyOf": [named, vector, {"type": "null"}]}


def feature_schema(feature: Feature) -> Document:
    """One feature: what JSON it may be, and its kind, unit, range and vocabulary. Null always means: not measured."""
    shared: Document = {"description": _EXPLAINED_KINDS[feature.kind], "x-kind": feature.kind}
    if feature.loinc:
        shared["x-loinc"] = list(feature.loinc)
    match feature:
        case NumericFeature():
            unit = f" in {feature.unit}" if feature.unit else ""
            text = f"a number{unit}; training saw {feature.minimum:g} to {feature.maximum:g}"
            seen = [feature.minimum, feature.maximum]
            return {**shared, "type": ["number", "null"], "description": text, "x-unit": feature.unit, "x-training-range": seen}
        case CategoricalFeature():
            types = ["string", "number", "boolean", "null"]
            return {**shared, "type": types, "examples": list(feature.vocabulary[:3]), "x-vocabulary": list(feature.vocabulary)}
        case CodesFeature():
            text = f"a list of codes, or one string separated by {feature.separator!r}"
            if feature.grouping is not None:
                text += ", each with its edition: icd10:I50.9 or icd9:428.0"
            listed = {"type": ["array", "string", "null"], "items": {"type": "string"}}
            return {**shared, **listed, "description": text, "x-vocabulary": list(feature.vocabulary)}
        case TextFeature() | EmbeddedTextFeature():
            return {**shared, "type": ["string", "null"]}
        case ArrayFeature():
            text = f"an array of numbers of shape {list(feature.shape)}, nested or flat"
            return {**shared, "type": ["array", "null"], "description": text, "x-shape": list(feature.shape)}
