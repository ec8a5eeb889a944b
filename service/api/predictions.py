"""From instances to predictions: what every way of asking for whole predictions shares, whatever it reads and answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from service.api.batches import Scored
from service.api.errors import InferenceFailedError, InvalidInputError
from service.api.metrics import Metrics
from service.api.middleware import request_info
from service.api.model import Model
from service.api.requests import ParsedRequest, headline
from service.api.runtime import Runtime
from service.api.scoring import aside, submit, timed
from service.api.shadow import Shadow
from service.api.tracing import spanned
from service.bundle.answers import Answers, Prediction, build_refusal
from service.bundle.attribution import LABEL_INPUT, Attribution, RecordAttribution, one_hot, tell_attributions
from service.bundle.errors import Problem
from service.bundle.schema import EncodedRecord, FeatureSchema

LARGE_NUM_INSTANCES = 16  # beyond it, writing answers would hold up other requests in the event loop for milliseconds


@dataclass(frozen=True, slots=True)
class Predicted:
    """The predictions of a request, one per instance and in order, and where the time went."""

    predictions: list[Prediction]
    scored: Scored[Answers]
    attributed: Scored[Attribution] | None

    def timing_ms(self, total_s: float) -> dict[str, Any]:
        """As a client reads it; `total_s` is the request's time so far."""
        told = {"queue": round(1000 * self.scored.queue_s, 3), "inference": round(1000 * self.scored.inference_s, 3)}
        if self.attributed is not None:
            told["attribution"] = round(1000 * (self.attributed.queue_s + self.attributed.inference_s), 3)
        return {**told, "total": round(1000 * total_s, 3), "batch_size": self.scored.batch_size}


async def predict_instances(parsed: ParsedRequest, runtime: Runtime, model: Model, *, request: Request) -> Predicted:
    """Score what can be scored, and keep it where that is wanted; what cannot is told in its place.

    Raises `ApiError` where nothing can be answered.
    """
    metrics = runtime.metrics
    if num_invalid := len(parsed.instances) - len(parsed.encoded):
        metrics.samples.labels("invalid").inc(num_invalid)
    if not parsed.encoded:
        raise parsed.refusal()
    _check_features(parsed, model)
    scored = await _score(request, parsed, model)
    metrics.queue.observe(scored.queue_s)
    if scored.failures:
        metrics.samples.labels("error").inc(len(scored.failures))
    attributed = await _attribute(request, parsed, scored, model) if parsed.with_features else None
    audit = runtime.audit
    with timed(metrics.postprocess, "write"):
        write = partial(_predictions, parsed, scored, model, metrics, attributed, explained=parsed.explain or audit is not None)
        predictions = await aside(write, large=len(parsed.instances) > LARGE_NUM_INSTANCES)
    if audit is not None:
        rows = [record.arrays for record in _without_failures(parsed, scored)]
        with spanned("audit"):
            await audit.keep(predictions, rows, request_id=request_info(request).id, model=model.info)
        if not parsed.explain:
            predictions = [{k: v for k, v in prediction.items() if k != "explanation"} for prediction in predictions]
    if runtime.shadow is not None:
        _offer(runtime.shadow, parsed, scored, model)
    return Predicted(predictions, scored, attributed)


def _check_features(parsed: ParsedRequest, model: Model) -> None:
    if parsed.with_features and model.attributions is None:
        msg = "must be true or false: this model's bundle has no graph that attributes contributions to features"
        raise InvalidInputError(f"explain {msg}", [Problem(("explain",), "no_attribution", msg)])


async def _score(request: Request, parsed: ParsedRequest, model: Model) -> Scored[Answers]:
    arrays = model.manifest.features.stack([record.arrays for record in parsed.encoded])
    return await submit(request, model.batcher, arrays, len(parsed.encoded), provider=model.predictor.provider)


async def _attribute(
    request: Request, parsed: ParsedRequest, scored: Scored[Answers], model: Model
) -> Scored[Attribution] | None:
    """Attribute the contributions of every instance that was scored, towards its predicted label; None if none was."""
    if scored.output is None or model.attributions is None:
        return None
    records = _without_failures(parsed, scored)
    label = one_hot(scored.output.label, len(model.manifest.task.labels))
    arrays = {**model.manifest.features.stack([record.arrays for record in records]), LABEL_INPUT: label}
    provider = model.predictor.provider
    return await submit(request, model.attributions, arrays, len(records), provider=provider, span="attribution")


def _without_failures(parsed: ParsedRequest, scored: Scored[Answers]) -> list[EncodedRecord]:
    return [record for position, record in enumerate(parsed.encoded) if position not in scored.failures]


def _offer(shadow: Shadow, parsed: ParsedRequest, scored: Scored[Answers], model: Model) -> None:
    """Have what was scored compared with what another model says."""
    if scored.output is None:
        return
    stack = partial(model.manifest.features.stack, [record.arrays for record in _without_failures(parsed, scored)])
    encoded = [position for position, instance in enumerate(parsed.instances) if instance.encoded is not None]
    answered = [position for i, position in enumerate(encoded) if i not in scored.failures]
    shadow.offer(scored.output, rows=stack, unread=parsed.unread, positions=answered)


def _predictions(
    parsed: ParsedRequest,
    scored: Scored[Answers],
    model: Model,
    metrics: Metrics,
    attributed: Scored[Attribution] | None,
    *,
    explained: bool,
) -> list[Prediction]:
    """One entry per instance, in order: its prediction, or why there is none."""
    if scored.output is None:
        raise InferenceFailedError("the model failed on every instance")
    records, schema = _without_failures(parsed, scored), model.manifest.features
    metrics.count_missing(name for record in records for name in record.missing if name in schema.names)
    told = _told(attributed, len(records), schema) if attributed is not None else None
    ids = [None] * len(records)
    answers = scored.output.predictions(records, ids, with_explanation=explained, attributions=told)
    return list(_merge(parsed, scored, iter(answers)))


def _told(attributed: Scored[Attribution], num_records: int, schema: FeatureSchema) -> list[RecordAttribution | None]:
    """For each record what its experts' contributions rest on; None where the graph failed."""
    found = iter(tell_attributions(attributed.output, schema) if attributed.output is not None else ())
    return [None if position in attributed.failures else next(found) for position in range(num_records)]


def _merge(parsed: ParsedRequest, scored: Scored[Answers], answers: Iterator[Prediction]) -> Iterator[Prediction]:
    position = 0
    for instance in parsed.instances:
        if instance.encoded is None:
            yield build_refusal(instance.id, "INVALID_INPUT", headline(instance.problems), instance.problems)
            continue
        if position in scored.failures:
            yield build_refusal(instance.id, "INFERENCE_FAILED", "the model failed on this instance")
        else:
            yield next(answers) | {"id": instance.id}
        position += 1
