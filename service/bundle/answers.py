"""From encoded records and the graph's outputs to the predictions a client reads.

The same dictionaries leave the HTTP service and the command line; `service.api.models` documents their fields.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from service.bundle.attribution import ExpertAttribution, RecordAttribution
from service.bundle.errors import Problem
from service.bundle.explanation import DIGITS, Explanation, Floats, RecordExplanation, explain, risk_band, rounded, summarise
from service.bundle.manifest import Manifest, TaskInfo
from service.bundle.output import Output
from service.bundle.uncertainty import assess, caution, tell

Prediction = dict[str, Any]
_UNATTRIBUTED = "the contributions could not be attributed to features"


def build_refusal(record_id: str | int | None, code: str, message: str, problems: Sequence[Problem] = ()) -> Prediction:
    """What stands in the place of a prediction for a record that could not be answered."""
    detail = [{"loc": list(problem.loc), "type": problem.type, "msg": problem.msg} for problem in problems]
    return {"id": record_id, "status": "error", "error": {"code": code, "message": message, "detail": detail}}


class Remarked(Protocol):
    """A record as it was sent: what of it is missing, and what its sender should know."""

    @property
    def missing(self) -> tuple[str, ...]:
        """`labs` for a whole modality, else `labs.glucose`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences."""


class Sent(NamedTuple):
    """What is remarkable about one good record."""

    missing: tuple[str, ...]
    warnings: tuple[str, ...]


class _Record(NamedTuple):
    """What is known of one scored record, in Python's own numbers; those of the answer are rounded."""

    exact: list[float]  # its prediction, not rounded
    prediction: list[float]
    stated: float  # the risk for binary tasks, else the predicted label's probability or value
    explanation: RecordExplanation
    agreement: float
    weight: list[float]
    probability: list[float]  # what each expert alone would state
    logits: list[list[float]]
    contribution: list[float]
    share: list[float]
    uncertainty: dict[str, Any] | None  # None where the bundle does not say


@dataclass(frozen=True, slots=True)
class Answers:
    """B scored records, explained all at once and told one by one; can be taken apart and joined like rows.

    Numpy costs as much for one record as for a hundred, so all arithmetic happens in `of`, for the whole batch.
    """

    manifest: Manifest
    output: Output
    records: Sequence[_Record]

    @classmethod
    def of(cls, output: Output, manifest: Manifest) -> "Answers":
        """Explain the rows of `output` and say how sure each is."""
        task, info = manifest.task, manifest.uncertainty
        explanation = explain(output, task, manifest.calibration)
        sure = None if info is None else assess(output.prediction, explanation, task, info)
        columns = (
            output.prediction.tolist(),
            rounded(output.prediction),
            rounded(_stated(output.prediction, explanation, task)),
            explanation.records(),
            rounded(explanation.agreement),
            rounded(explanation.weight),
            rounded(_stated(explanation.expert_prediction, explanation, task)),
            rounded(output.expert_logits),
            rounded(explanation.contribution),
            rounded(explanation.share),
            [None] * len(output) if sure is None or info is None else tell(sure, output.prediction, task=task, info=info),
        )
        return cls(manifest, output, [_Record(*record) for record in zip(*columns, strict=True)])

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, rows: slice) -> "Answers":
        """Those of some of the records."""
        return Answers(self.manifest, self.output.rows(rows), self.records[rows])

    @classmethod
    def join(cls, parts: Sequence["Answers"]) -> "Answers":
        """Those of several batches, one after the other."""
        output = Output.join([part.output for part in parts])
        return cls(parts[0].manifest, output, [record for part in parts for record in part.records])

    @property
    def labels(self) -> list[int]:
        """The position of each record's predicted label."""
        return [record.explanation.label for record in self.records]

    @property
    def weights(self) -> list[list[float]]:
        """Each record's weights, one per expert."""
        return [record.weight for record in self.records]

    @property
    def stated(self) -> list[float]:
        """The probability that each record's answer states: the risk for binary tasks, else the predicted label's."""
        return [record.stated for record in self.records]

    @property
    def uncertainties(self) -> list[dict[str, Any]]:
        """How sure each prediction is, as it is told; empty where the bundle does not say."""
        return [record.uncertainty for record in self.records if record.uncertainty is not None]

    def predictions(
        self,
        sent: Sequence[Remarked],
        ids: Sequence[str | int | None],
        *,
        with_explanation: bool = True,
        attributions: Sequence[RecordAttribution | None] | None = None,
    ) -> list[Prediction]:
        """One prediction per record, in order; `sent` tells what was remarkable about the same records.

        With `attributions` every expert is told with the features that drove it; a record whose are None gets a warning instead.
        """
        attributed = [None] * len(self) if attributions is None else attributions
        told = []
        for record, remarks, record_id, attribution in zip(self.records, sent, ids, attributed, strict=True):
            prediction = self._prediction(record, record_id)
            if with_explanation:
                prediction["explanation"] = self._explanation(record, attribution)
            unattributed = attributions is not None and attribution is None
            prediction["missing"] = list(remarks.missing)
            prediction["warnings"] = [*remarks.warnings, *([_UNATTRIBUTED] if unattributed else [])]
            told.append(prediction)
        return told

    def _prediction(self, record: _Record, record_id: str | int | None) -> Prediction:
        task, label = self.manifest.task, record.explanation.label
        told: Prediction = {
            "id": record_id,
            "status": "ok",
            "label": task.labels[label],
            "probability": record.stated,
            "probabilities": dict(zip(task.labels, record.prediction, strict=True)),
            "risk_band": risk_band(record.exact[-1], task),
        }
        if record.uncertainty is not None:  # belongs to the prediction, explained or not
            told["uncertainty"] = record.uncertainty
        return told

    def _explanation(self, record: _Record, attribution: RecordAttribution | None) -> dict[str, Any]:
        dominant = record.explanation.dominant
        leading = attribution[dominant].features if attribution is not None else ()
        return {
            "dominant": self.manifest.experts[dominant].name,
            "agreement": record.agreement,
            "summary": self._summary(record, leading),
            "experts": list(self._experts(record, attribution)),
        }

    def _summary(self, record: _Record, leading: Sequence[tuple[str, float]]) -> str:
        manifest, info = self.manifest, self.manifest.uncertainty
        label = manifest.task.labels[record.explanation.label]
        return summarise(
            record.explanation,
            record.exact,
            task=manifest.task,
            experts=manifest.experts,
            leading=leading,
            caution="" if record.uncertainty is None or info is None else caution(record.uncertainty, label, info),
        )

    def _experts(self, record: _Record, attribution: RecordAttribution | None) -> Iterator[dict[str, Any]]:
        for e, expert in enumerate(self.manifest.experts):
            told = {
                "name": expert.name,
                "kind": expert.kind,
                "modality": expert.modality,
                "weight": record.weight[e],
                "probability": record.probability[e],
                "logits": record.logits[e],
                "contribution": record.contribution[e],
                "contribution_share": record.share[e],
            }
            yield told if attribution is None else told | _tell_features(attribution[e])


def _stated(prediction: Floats, explanation: Explanation, task: TaskInfo) -> Floats:
    """Of predictions (B, ..., C) what is stated (B, ...): the event for binary tasks (the risk), else the predicted label."""
    if task.kind == "binary":
        return prediction[..., -1]
    stated: Floats = prediction[np.arange(len(prediction)), ..., explanation.label]
    return stated


def _tell_features(attribution: ExpertAttribution) -> dict[str, Any]:
    return {
        "features": [{"name": name, "attribution": round(value, DIGITS)} for name, value in attribution.features],
        "rest": round(attribution.rest, DIGITS),
        "base": round(attribution.base, DIGITS),
        "gap": round(attribution.gap, DIGITS),
    }
