"""From encoded records and the graph's outputs to the predictions a client reads.

The same dictionaries leave the HTTP service and the command line; `service.api.models` documents their fields.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from service.bundle.attribution import ExpertAttribution, RecordAttribution
from service.bundle.errors import Problem
from service.bundle.explanation import (
    DIGITS,
    Explanation,
    Floats,
    Ints,
    RecordExplanation,
    decide,
    explain,
    listed,
    risk_band,
    rounded,
    summarise,
)
from service.bundle.manifest import Manifest, TaskInfo
from service.bundle.output import Output
from service.bundle.uncertainty import Uncertainty, assess, caution, tell

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
    """What is told of one scored record, in Python's own numbers; those of the answer are rounded."""

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
class Explained:
    """B scored records and all that is worked out of them, in arrays.

    Numpy costs as much for one record as for a hundred, so this happens here, for a whole batch, and so does making lists of its
    numbers for those who want them.
    """

    manifest: Manifest
    output: Output
    explanation: Explanation
    uncertainty: Uncertainty | None  # None where the bundle does not say
    stated: Floats  # (B,), as told: the risk for binary tasks, else the predicted label's probability or value
    weight: Floats  # (B, E), as told

    @classmethod
    def of(cls, output: Output, manifest: Manifest) -> "Explained":
        """Explain the rows of `output` and say how sure each is."""
        task, info = manifest.task, manifest.uncertainty
        explanation = explain(output, task, manifest.calibration)
        uncertainty = None if info is None else assess(output.prediction, explanation, task, info)
        stated = rounded(_stated(output.prediction, explanation, task))
        return cls(manifest, output, explanation, uncertainty, stated, rounded(explanation.weight))

    def answers(self, *, in_full: bool = True) -> "Answers":
        """What is answered: predictions can be told where it is `in_full`, else there are arrays alone."""
        explanation = self.explanation
        records: Sequence[_Record | None] = self._records() if in_full else [None] * len(self.output)
        return Answers(self.manifest, self.output, explanation.contribution, explanation.share, records)

    def _records(self) -> list[_Record]:
        task, output, explanation = self.manifest.task, self.output, self.explanation
        columns = (
            output.prediction.tolist(),
            listed(output.prediction),
            self.stated.tolist(),
            explanation.records(),
            listed(explanation.agreement),
            self.weight.tolist(),
            listed(_stated(explanation.expert_prediction, explanation, task)),
            listed(output.expert_logits),
            listed(explanation.contribution),
            listed(explanation.share),
            self._uncertainties(),
        )
        return [_Record(*record) for record in zip(*columns, strict=True)]

    def _uncertainties(self) -> Sequence[dict[str, Any] | None]:
        info = self.manifest.uncertainty
        if self.uncertainty is None or info is None:
            return [None] * len(self.output)
        return tell(self.uncertainty, self.output.prediction, task=self.manifest.task, info=info)


@dataclass(frozen=True, slots=True)
class Answers:
    """What is answered for B records: arrays, and predictions told one by one; can be taken apart and joined like rows."""

    manifest: Manifest
    output: Output
    contribution: Floats  # (B, E), as in `Explanation`
    share: Floats  # (B, E)
    records: Sequence[_Record | None]  # None where arrays are all that is wanted

    def __len__(self) -> int:
        return len(self.output)

    def rows(self, rows: slice) -> "Answers":
        """Those of some of the records."""
        output, records = self.output.rows(rows), self.records[rows]
        return Answers(self.manifest, output, self.contribution[rows], self.share[rows], records)

    @classmethod
    def join(cls, parts: Sequence["Answers"]) -> "Answers":
        """Those of several batches, one after the other."""
        return cls(
            parts[0].manifest,
            Output.join([part.output for part in parts]),
            np.concatenate([part.contribution for part in parts]),
            np.concatenate([part.share for part in parts]),
            [record for part in parts for record in part.records],
        )

    @property
    def label(self) -> Ints:
        """The position of each record's predicted label (B,)."""
        return decide(self.output.prediction, self.manifest.task)

    def predictions(
        self,
        sent: Sequence[Remarked],
        ids: Sequence[str | int | None],
        *,
        with_explanation: bool = True,
        attributions: Sequence[RecordAttribution | None] | None = None,
    ) -> list[Prediction]:
        """One prediction per record, in order, of answers in full; `sent` tells what was remarkable about the same records.

        With `attributions` every expert is told with the features that drove it; a record whose are None gets a warning instead.
        """
        records = [record for record in self.records if record is not None]
        attributed = [None] * len(self) if attributions is None else attributions
        told = []
        for record, remarks, record_id, attribution in zip(records, sent, ids, attributed, strict=True):
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
