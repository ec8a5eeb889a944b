"""The Open Inference Protocol (KServe V2): /v2, its health and model paths, and inference on tensors of flat vectors.

For applications that hold their records as arrays: no JSON numbers to write and read, no sentence to build. What is refused is
refused in the shape of every other error here, which holds the protocol's `error`.
"""

from functools import partial

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.access import GuardedRoute
from service.api.audit import Audit
from service.api.errors import InferenceFailedError, NotFoundError
from service.api.middleware import request_info
from service.api.model import Model
from service.api.predictions import LARGE_NUM_INSTANCES
from service.api.requests import Unread, check_media_type, read_body
from service.api.runtime import Runtime
from service.api.scoring import aside, runtime_of, submit, timed, within_deadline
from service.api.tensors import HEADER_LENGTH, ParsedInfer, infer_response, model_metadata, parse_infer
from service.api.tracing import spanned
from service.bundle.answers import Answers, Sent

_LARGE_JSON_BYTES, _LARGE_BODY_BYTES = 32_768, 1_000_000  # bytes are read a hundred times as fast as JSON
_EXTENSIONS = ("binary_tensor_data",)


def protocol_routes(version: str) -> list[GuardedRoute]:
    """Every path of the protocol; `version` is that of this service's HTTP interface."""

    def show_server(_: Request) -> Response:
        return JSONResponse({"name": "i2moe-service", "version": version, "extensions": list(_EXTENSIONS)})

    model = "/v2/models/{name}"
    versioned = model + "/versions/{version}"
    return [
        *(GuardedRoute(f"{path}/infer", infer, methods=["POST"], needs="predict") for path in (model, versioned)),
        *(GuardedRoute(f"{path}/ready", _show_model_ready, needs="explain") for path in (model, versioned)),
        *(GuardedRoute(path, _show_model, needs="explain") for path in (model, versioned)),
        GuardedRoute("/v2/health/ready", _show_ready, needs=None),
        GuardedRoute("/v2/health/live", _show_live, needs=None),
        GuardedRoute("/v2", show_server, needs=None),
    ]


def _show_live(_: Request) -> Response:
    return JSONResponse({"live": True})


def _show_ready(request: Request) -> Response:
    runtime_of(request).require_model()
    return JSONResponse({"ready": True})


def _show_model(request: Request) -> Response:
    return Response(to_json(model_metadata(_named_model(request).manifest)), media_type="application/json")


def _show_model_ready(request: Request) -> Response:
    manifest = _named_model(request).manifest
    return JSONResponse({"name": manifest.name, "ready": True})


def _named_model(request: Request) -> Model:
    """The model, which must be the one that the path names."""
    model = runtime_of(request).require_model()
    named = request.path_params
    if named["name"] != model.manifest.name or named.get("version", model.manifest.version) != model.manifest.version:
        served = f"{model.manifest.name}, version {model.manifest.version}"
        raise NotFoundError(f"there is no model of this name and version; served is {served}")
    return model


async def infer(request: Request) -> Response:
    """POST .../infer: score the records of the tensors."""
    runtime, model = runtime_of(request), _named_model(request)
    check_media_type(request)
    return await within_deadline(request, runtime, _answer(request, runtime, model))


async def _answer(request: Request, runtime: Runtime, model: Model) -> Response:
    settings, metrics, schema = runtime.settings, runtime.metrics, model.manifest.features
    body = await read_body(request, settings.max_body_bytes)
    with timed(metrics.preprocess, "read"):
        header_length = request.headers.get(HEADER_LENGTH)
        read = partial(parse_infer, body, header_length, schema, max_instances=settings.max_instances)
        parsed = await aside(read, large=len(body) > (_LARGE_JSON_BYTES if header_length is None else _LARGE_BODY_BYTES))
    in_full, provider = runtime.audit is not None, model.predictor.provider  # else arrays are all that is answered
    scored = await submit(request, model.batcher, parsed.records.arrays, parsed.size, provider=provider, in_full=in_full)
    metrics.queue.observe(scored.queue_s)
    if scored.failures:
        metrics.samples.labels("error").inc(len(scored.failures))
    if scored.output is None or scored.failures:
        raise InferenceFailedError(f"the model failed on {len(scored.failures)} of {parsed.size} records")
    if runtime.audit is not None:
        with spanned("audit"):
            await _keep(runtime.audit, parsed, scored.output, model, request_info(request).id)
    if runtime.shadow is not None:
        records = parsed.records
        unread = Unread(lambda _: records.one_by_one(), sum(rows.nbytes for rows in records.arrays.values()))
        runtime.shadow.offer(scored.output, rows=lambda: records.arrays, unread=unread, positions=range(parsed.size))
    with timed(metrics.postprocess, "write"):
        metrics.count_missing(name for name, rows in parsed.records.absent.items() for _ in range(int(rows.sum())))
        return infer_response(parsed, scored.output, request_info(request).id)


async def _keep(audit: Audit, parsed: ParsedInfer, answers: Answers, model: Model, request_id: str) -> None:
    """Keep what is answered; a modality without any value is all that is told of what was missing."""
    arrays, absent = parsed.records.arrays, parsed.records.absent
    sent = [Sent(tuple(name for name, rows in absent.items() if rows[row]), ()) for row in range(parsed.size)]
    rows = [{name: values[row] for name, values in arrays.items()} for row in range(parsed.size)]
    tell = partial(answers.predictions, sent, [None] * parsed.size)
    predictions = await aside(tell, large=parsed.size > LARGE_NUM_INSTANCES)
    await audit.keep(predictions, rows, request_id=request_id, model=model.info)
