"""POST /predict: reads the instances of a request and writes its response, as JSON or, where it accepts that, as FHIR."""

from functools import partial

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from service.api.middleware import request_info
from service.api.model import Model
from service.api.negotiation import FHIR_JSON, answers_fhir
from service.api.predictions import LARGE_NUM_INSTANCES, Predicted, predict_instances
from service.api.requests import ParsedRequest, check_media_type, read_body
from service.api.runtime import Runtime
from service.api.scoring import aside, runtime_of, timed, within_deadline
from service.bundle.card import NOTICE
from service.clinical.risk_assessment import answer_document

# Beyond this size the work would hold up other requests in the event loop for milliseconds.
_LARGE_BODY_BYTES = 32_768


async def predict(request: Request) -> Response:
    """Score the instances of a request within its deadline."""
    runtime = runtime_of(request)
    model = runtime.require_model()
    check_media_type(request)
    return await within_deadline(request, runtime, _answer(request, runtime, model))


async def _answer(request: Request, runtime: Runtime, model: Model) -> Response:
    settings, metrics = runtime.settings, runtime.metrics
    body = await read_body(request, settings.max_body_bytes)
    with timed(metrics.preprocess, "read"):
        parsed = await _read(body, model)
    predicted = await predict_instances(parsed, runtime, model, request=request)
    if answers_fhir(request):
        return await _as_fhir(predicted, model)
    info = request_info(request)
    timing_ms = predicted.timing_ms(info.elapsed_s)
    response = {
        "model": model.info,
        "request_id": info.id,
        "notice": NOTICE,
        "predictions": predicted.predictions,
        "timing_ms": timing_ms,
    }
    return Response(to_json(response, inf_nan_mode="null"), media_type="application/json")


async def _read(body: bytes, model: Model) -> ParsedRequest:
    read = partial(model.reader.read, body)
    if model.slow_reading is not None:
        return await model.slow_reading.read(read)
    return await aside(read, large=len(body) > _LARGE_BODY_BYTES)


async def _as_fhir(predicted: Predicted, model: Model) -> Response:
    write = partial(answer_document, predicted.predictions, manifest=model.manifest, sha256=model.bundle.sha256)
    document = await aside(write, large=len(predicted.predictions) > LARGE_NUM_INSTANCES)
    return Response(to_json(document, inf_nan_mode="null"), media_type=FHIR_JSON)
