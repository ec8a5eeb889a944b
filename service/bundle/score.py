"""Scores a file's records batch by batch, with bounded memory: the graph works on some while others are read and told."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from service.bundle.answers import Answers, Explained, Prediction, build_refusal
from service.bundle.attribution import RecordAttribution, one_hot, tell_attributions
from service.bundle.encoding import EncodedBatch
from service.bundle.errors import InferenceError
from service.bundle.predictor import Predictor
from service.bundle.schema import FloatArray

Arrays = Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class _Scored:
    """The good rows of a batch: answers of those that the graph took, in order, and why it failed on the others."""

    answers: Answers | None  # None when there are none
    failures: dict[int, InferenceError]  # by position among the good rows


def score(
    predictor: Predictor, batches: Iterable[EncodedBatch], *, num_threads: int = 1, with_features: bool = False
) -> Iterator[list[Prediction]]:
    """The predictions of each batch, rows in order; one that does not fit gets `status: "error"` and its problems.

    `num_threads` batches are in the graph at a time. `with_features`: every expert is told with the features that drove it.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="graph") as graph:
        running: deque[tuple[EncodedBatch, Future[_Scored]]] = deque()
        for batch in batches:
            running.append((batch, graph.submit(_run, predictor, batch.arrays, len(batch.sent))))
            if len(running) > num_threads:  # one is ready before a thread is
                yield _next(running, predictor, with_features=with_features)
        while running:
            yield _next(running, predictor, with_features=with_features)


def score_batch(predictor: Predictor, batch: EncodedBatch, *, with_features: bool = False) -> list[Prediction]:
    """The predictions of one batch, rows in order, worked out here and now."""
    return _tell(predictor, batch, _run(predictor, batch.arrays, len(batch.sent)), with_features=with_features)


def _next(running: deque[tuple[EncodedBatch, Future[_Scored]]], predictor: Predictor, *, with_features: bool) -> list[Prediction]:
    batch, future = running.popleft()
    return _tell(predictor, batch, future.result(), with_features=with_features)


def _run(predictor: Predictor, arrays: Arrays, size: int) -> _Scored:
    """Score and explain all together; when the graph fails, each alone, so that only the culprits fail."""
    if not size:
        return _Scored(None, {})
    try:
        return _Scored(Explained.of(predictor.run(dict(arrays)), predictor.manifest).answers(), {})
    except InferenceError as error:
        if size == 1:
            return _Scored(None, {0: error})
    singles = [_run(predictor, {name: x[i : i + 1] for name, x in arrays.items()}, 1) for i in range(size)]
    answered = [single.answers for single in singles if single.answers is not None]
    failures = {i: single.failures[0] for i, single in enumerate(singles) if single.failures}
    return _Scored(Answers.join(answered) if answered else None, failures)


def _tell(predictor: Predictor, batch: EncodedBatch, scored: _Scored, *, with_features: bool) -> list[Prediction]:
    good = [row for row in range(len(batch)) if row not in batch.refusals]
    told: dict[int, Prediction] = {
        row: build_refusal(batch.ids[row], "INVALID_INPUT", str(error), error.problems) for row, error in batch.refusals.items()
    }
    told |= {good[i]: build_refusal(batch.ids[good[i]], "INFERENCE_FAILED", str(error)) for i, error in scored.failures.items()}
    if scored.answers is not None:
        kept = [i for i in range(len(good)) if i not in scored.failures]
        attributions = list(_attributed(predictor, scored.answers, batch.arrays, kept)) if with_features else None
        ids = [batch.ids[good[i]] for i in kept]
        predictions = scored.answers.predictions([batch.sent[i] for i in kept], ids, attributions=attributions)
        told |= {good[i]: prediction for i, prediction in zip(kept, predictions, strict=True)}
    return [told[row] for row in range(len(batch))]


def _attributed(
    predictor: Predictor, answers: Answers, arrays: Arrays, kept: Sequence[int]
) -> Iterator[RecordAttribution | None]:
    """A few records at a time, as each is many rows of the graph; None for a record on which it fails."""
    label = one_hot(answers.label, len(predictor.manifest.task.labels))
    at_once = attribution.records_at_once if (attribution := predictor.manifest.attribution) else 1
    for start in range(0, len(kept), at_once):
        rows = kept[start : start + at_once]
        yield from _attribute_rows(predictor, {name: x[rows] for name, x in arrays.items()}, label[start : start + at_once])


def _attribute_rows(predictor: Predictor, arrays: Arrays, label: FloatArray) -> list[RecordAttribution | None]:
    try:
        return [*tell_attributions(predictor.attribute(arrays, label), predictor.manifest.features)]
    except InferenceError:
        if len(label) == 1:
            return [None]
        singles = ({name: rows[i : i + 1] for name, rows in arrays.items()} for i in range(len(label)))
        return [told for i, single in enumerate(singles) for told in _attribute_rows(predictor, single, label[i : i + 1])]
