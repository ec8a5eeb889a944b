"""GET /docs.json: an OpenAPI 3.1 document, generated from the wire models and the served model's feature schema."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from service.api import models
from service.api.errors import (
    ApiError,
    BodyTooLargeError,
    DeadlineError,
    InferenceFailedError,
    InternalError,
    InvalidInputError,
    InvalidJsonError,
    MediaTypeError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
)
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

API_VERSION = "1.2.0"  # of the HTTP interface, by semantic versioning; models have their own

Document = dict[str, Any]
_REF = "#/components/schemas/{model}"
_PREDICT_ERRORS: tuple[type[ApiError], ...] = (
    InvalidJsonError,
    BodyTooLargeError,
    MediaTypeError,
    InvalidInputError,
    InternalError,
    InferenceFailedError,
    OverloadedError,
    NotReadyError,
    DeadlineError,
)
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
        "components": {"schemas": {**_wire_schemas(), "Record": record_schema(manifest.features) if manifest else _ANY_RECORD}},
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
        models.ExplanationsResponse,
        InferRequest,
    )
    _, document = models_json_schema([(model, "validation") for model in wire], ref_template=_REF)
    schemas: Document = document["$defs"]
    return schemas


def _paths(manifest: Manifest | None) -> Document:
    text: Document = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/predict": {"post": _predict_operation(manifest)},
        "/model": {"get": _get("What is served: features, task, figures, card", _json(_ref("ModelResponse")), NotReadyError)},
        "/explanations": {"get": _get("How the experts behave", _json(_ref("ExplanationsResponse")), NotReadyError)},
        "/metrics": {"get": _get("Prometheus metrics", text)},
        "/docs.json": {"get": _get("This document, OpenAPI 3.1", _json({"type": "object"}))},
        "/livez": {"get": _get("Whether the process lives", text)},
        "/readyz": {"get": _get("Whether a model is ready to answer", text, NotReadyError)},
        **_protocol_paths(),
    }


def _protocol_paths() -> Document:
    """The Open Inference Protocol, whose own documents say more."""
    described = _json({"type": "object"})
    paths: Document = {
        "/v2": {"get": _get("Open Inference Protocol: this server and its extensions", described)},
        "/v2/health/live": {"get": _get("Whether the process lives", described)},
        "/v2/health/ready": {"get": _get("Whether a model is ready to answer", described, NotReadyError)},
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    version = name | {"name": "version"}
    for path, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        about = _get("The model's inputs and outputs with types and shapes", described, NotFoundError, NotReadyError)
        ready = _get("Whether this model is ready", described, NotFoundError, NotReadyError)
        paths[path] = {"parameters": parameters, "get": about}
        paths[f"{path}/ready"] = {"parameters": parameters, "get": ready}
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer_operation()}
    return paths


def _infer_operation() -> Document:
    any_bytes: Document = {"application/octet-stream": {"schema": {"type": "string", "contentEncoding": "binary"}}}
    answer = _response("The outputs that were asked for", {**_json({"type": "object"}), **any_bytes})
    return {
        "summary": "Score records given as tensors of flat vectors",
        "description": f"Numbers are JSON, or bytes after the JSON part, whose length the header {HEADER_LENGTH} then says (the "
        "protocol's binary tensor data extension). NaN, or null in JSON, is a missing value. One record that does not fit "
        "refuses the request.",
        "requestBody": {"required": True, "content": {**_json(_ref("InferRequest")), **any_bytes}},
        "responses": {"200": answer, **_errors((NotFoundError, *_PREDICT_ERRORS))},
    }


def _predict_operation(manifest: Manifest | None) -> Document:
    body: Document = {"schema": {"anyOf": [_ref("PredictRequest"), _ref("Record")]}}
    if manifest:
        record = manifest.example.record
        body["examples"] = {
            "many": {"summary": "One or many records", "value": {"instances": [record], "explain": True}},
            "one": {"summary": "A single record as it is", "value": record},
        }
    answer = _response("The predictions, in the order of the instances", _json(_ref("PredictResponse")))
    return {
        "summary": "Score one record or many, with explanations",
        "description": "Instances that do not fit are answered with `status: error` beside the others; when none fits, "
        "the answer is 422. An X-Request-ID of up to 128 plain characters is kept.",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": answer, **_errors(_PREDICT_ERRORS)},
    }


def _ref(name: str) -> Document:
    return {"$ref": _REF.format(model=name)}


def _json(schema: Document) -> Document:
    return {"application/json": {"schema": schema}}


def _response(description: str, content: Document) -> Document:
    return {"description": description, "content": content}


def _get(summary: str, content: Document, *errors: type[ApiError]) -> Document:
    return {"summary": summary, "responses": {"200": _response(summary, content), **_errors(errors)}}


def _errors(kinds: Sequence[type[ApiError]]) -> Document:
    """The responses of these errors; those that share a status are described together."""
    responses: Document = {}
    for kind in kinds:
        response = responses.setdefault(str(kind.status), _response("", _json(_ref("ErrorResponse"))))
        response["description"] += f"`{kind.code}`: {kind.__doc__} "
        if kind.retry_after_s is not None:
            response["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return responses


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
