"""POST /predict: from the request's instances to its response."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from service.api.batcher import Scored
from service.api.errors import InferenceFailedError, InvalidInputError, tell
from service.api.metrics import Metrics
from service.api.middleware import request_info
from service.api.requests import ParsedRequest, check_media_type, headline, read_body
from service.api.runtime import Model, Runtime
from service.api.scoring import aside, runtime_of, submit, timed, within_deadline
from service.bundle.answers import Answers, Prediction
from service.bundle.attribution import LABEL_INPUT, Attribution, RecordAttribution, one_hot, tell_attributions
from service.bundle.errors import Problem
from service.bundle.schema import EncodedRecord, FeatureSchema

# Beyond these sizes the work would hold up other requests in the event loop for milliseconds.
_LARGE_BODY_BYTES = 32_768
_LARGE_NUM_INSTANCES = 16


async def predict(request: Request) -> Response:
    """Score the instances of a request within its deadline."""
    runtime = runtime_of(request)
    model = runtime.require_model()
    check_media_type(request)
    return await within_deadline(request, runtime, _answer(request, runtime, model))


async def _answer(request: Request, runtime: Runtime, model: Model) -> Response:
    settings, metrics = runtime.settings, runtime.metrics
    body = await read_body(request, settings.max_body_bytes)
    with timed(metrics.preprocess):
        parsed = await _read(body, model)
    if num_invalid := len(parsed.instances) - len(parsed.encoded):
        metrics.samples.labels("invalid").inc(num_invalid)
    if not parsed.encoded:
        raise parsed.refusal()
    _check_features(parsed, model)
    scored = await _score(parsed, model)
    metrics.queue.observe(scored.queue_s)
    if scored.failures:
        metrics.samples.labels("error").inc(len(scored.failures))
    attributed = await _attribute(parsed, scored, model) if parsed.with_features else None
    with timed(metrics.postprocess):
        write = partial(_predictions, parsed, scored, model, metrics, attributed)
        predictions = await aside(write, large=len(parsed.instances) > _LARGE_NUM_INSTANCES)
    info = request_info(request)
    timing_ms = _timing(scored, attributed, info.elapsed_s)
    response = {"model": model.info, "request_id": info.id, "predictions": predictions, "timing_ms": timing_ms}
    return Response(to_json(response, inf_nan_mode="null"), media_type="application/json")


async def _read(body: bytes, model: Model) -> ParsedRequest:
    read = partial(model.reader.read, body)
    if model.slow_reading is not None:
        return await model.slow_reading.read(read)
    return await aside(read, large=len(body) > _LARGE_BODY_BYTES)


def _check_features(parsed: ParsedRequest, model: Model) -> None:
    if parsed.with_features and model.attributions is None:
        msg = "must be true or false: this model's bundle has no graph that attributes contributions to features"
        raise InvalidInputError(f"explain {msg}", [Problem(("explain",), "no_attribution", msg)])


async def _score(parsed: ParsedRequest, model: Model) -> Scored[Answers]:
    arrays = model.manifest.features.stack([record.arrays for record in parsed.encoded])
    return await submit(model.batcher, arrays, len(parsed.encoded))


async def _attribute(parsed: ParsedRequest, scored: Scored[Answers], model: Model) -> Scored[Attribution] | None:
    """Attribute the contributions of every instance that was scored, towards its predicted label; None if none was."""
    if scored.output is None or model.attributions is None:
        return None
    records = _without_failures(parsed, scored)
    label = one_hot(np.array(scored.output.labels), len(model.manifest.task.labels))
    arrays = {**model.manifest.features.stack([record.arrays for record in records]), LABEL_INPUT: label}
    return await submit(model.attributions, arrays, len(records))


def _without_failures(parsed: ParsedRequest, scored: Scored[Answers]) -> list[EncodedRecord]:
    return [record for position, record in enumerate(parsed.encoded) if position not in scored.failures]


def _predictions(
    parsed: ParsedRequest, scored: Scored[Answers], model: Model, metrics: Metrics, attributed: Scored[Attribution] | None
) -> list[Prediction]:
    """One entry per instance, in order: its prediction, or why there is none."""
    if scored.output is None:
        raise InferenceFailedError("the model failed on every instance")
    records, schema = _without_failures(parsed, scored), model.manifest.features
    metrics.count_missing(name for record in records for name in record.missing if name in schema.names)
    told = _told(attributed, len(records), schema) if attributed is not None else None
    ids = [None] * len(records)
    answers = scored.output.predictions(records, ids, with_explanation=parsed.explain, attributions=told)
    return list(_merge(parsed, scored, iter(answers)))


def _told(attributed: Scored[Attribution], num_records: int, schema: FeatureSchema) -> list[RecordAttribution | None]:
    """For each record what its experts' contributions rest on; None where the graph failed."""
    found = iter(tell_attributions(attributed.output, schema) if attributed.output is not None else ())
    return [None if position in attributed.failures else next(found) for position in range(num_records)]


def _merge(parsed: ParsedRequest, scored: Scored[Answers], answers: Iterator[Prediction]) -> Iterator[Prediction]:
    position = 0
    for instance in parsed.instances:
        if instance.encoded is None:
            yield _failed(instance.id, "INVALID_INPUT", headline(instance.problems), instance.problems)
            continue
        if position in scored.failures:
            yield _failed(instance.id, "INFERENCE_FAILED", "the model failed on this instance", ())
        else:
            yield next(answers) | {"id": instance.id}
        position += 1


def _failed(instance_id: str | int | None, code: str, message: str, problems: tuple[Problem, ...]) -> Prediction:
    return {"id": instance_id, "status": "error", "error": {"code": code, "message": message, "detail": tell(problems)}}


def _timing(scored: Scored[Answers], attributed: Scored[Attribution] | None, total_s: float) -> dict[str, Any]:
    attribution_s = {} if attributed is None else {"attribution": attributed.queue_s + attributed.inference_s}
    return {
        "queue": round(1000 * scored.queue_s, 3),
        "inference": round(1000 * scored.inference_s, 3),
        **{name: round(1000 * seconds, 3) for name, seconds in attribution_s.items()},
        "total": round(1000 * total_s, 3),
        "batch_size": scored.batch_size,
    }
