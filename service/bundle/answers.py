"""From encoded records and the graph's outputs to the predictions a client reads.

The same dictionaries leave the HTTP service and the command line; `service.api.models` documents their fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.bundle.attribution import ExpertAttribution, RecordAttribution
from service.bundle.errors import Problem
from service.bundle.explanation import Explanation, explain, risk_band, summarise
from service.bundle.manifest import Manifest
from service.bundle.output import Output
from service.bundle.schema import EncodedRecord
from service.bundle.uncertainty import Uncertainty, assess, caution, tell

Prediction = dict[str, Any]
_UNATTRIBUTED = "the contributions could not be attributed to features"
_DIGITS = 6  # enough for every reader, and float32 holds no more


def build_predictions(
    output: Output,
    records: Sequence[EncodedRecord],
    ids: Sequence[str | None],
    manifest: Manifest,
    *,
    with_explanation: bool = True,
    attributions: Sequence[RecordAttribution | None] | None = None,
) -> list[Prediction]:
    """One prediction per record, in order. `output` holds the rows of exactly these records.

    With `attributions` every expert is told with the features that drove it; a record whose are None gets a warning instead.
    """
    explanation = explain(output, manifest.task, manifest.calibration)
    info = manifest.uncertainty
    uncertainty = None if info is None else assess(output.prediction, explanation, manifest.task, info)
    batch = _Batch(output, explanation, manifest, uncertainty, attributions)
    return [
        batch.prediction(row, record, record_id, with_explanation=with_explanation)
        for row, (record, record_id) in enumerate(zip(records, ids, strict=True))
    ]


def build_refusal(record_id: str | None, code: str, error: Exception, problems: Sequence[Problem] = ()) -> Prediction:
    """What stands in the place of a prediction for a record that could not be answered."""
    detail = [{"loc": list(problem.loc), "type": problem.type, "msg": problem.msg} for problem in problems]
    return {"id": record_id, "status": "error", "error": {"code": code, "message": str(error), "detail": detail}}


@dataclass(frozen=True, slots=True)
class _Batch:
    """A scored batch and its explanation, from which the rows are told one by one."""

    output: Output
    explanation: Explanation
    manifest: Manifest
    uncertainty: Uncertainty | None  # None for a bundle that does not say
    attributions: Sequence[RecordAttribution | None] | None

    def prediction(self, row: int, record: EncodedRecord, record_id: str | None, *, with_explanation: bool) -> Prediction:
        task = self.manifest.task
        label = int(self.explanation.label[row])
        probabilities = _rounded(self.output.prediction[row])
        told: Prediction = {
            "id": record_id,
            "status": "ok",
            "label": task.labels[label],
            "probability": probabilities[self.stated(row)],
            "probabilities": dict(zip(task.labels, probabilities, strict=True)),
            "risk_band": risk_band(float(self.output.prediction[row, -1]), task),
        }
        uncertainty = self._uncertainty(row)
        if uncertainty is not None:  # belongs to the prediction, explained or not
            told["uncertainty"] = uncertainty
        if with_explanation:
            told["explanation"] = self._explanation(row, uncertainty)
        told["missing"] = list(record.missing)
        unattributed = self.attributions is not None and self.attributions[row] is None
        told["warnings"] = [*record.warnings, *([_UNATTRIBUTED] if unattributed else [])]
        return told

    def stated(self, row: int) -> int:
        """Whose probability is stated: the event's for binary tasks (the risk), else the predicted label's."""
        return len(self.manifest.task.labels) - 1 if self.manifest.task.kind == "binary" else int(self.explanation.label[row])

    def _uncertainty(self, row: int) -> dict[str, Any] | None:
        info, task = self.manifest.uncertainty, self.manifest.task
        if self.uncertainty is None or info is None:
            return None
        return tell(self.uncertainty, row, self.output.prediction[row], task=task, info=info)

    def _summary(self, row: int, uncertainty: dict[str, Any] | None, leading: Sequence[tuple[str, float]]) -> str:
        manifest, info = self.manifest, self.manifest.uncertainty
        label = manifest.task.labels[self.explanation.label[row]]
        return summarise(
            self.explanation,
            row,
            self.output.prediction[row],
            task=manifest.task,
            experts=manifest.experts,
            leading=leading,
            caution="" if uncertainty is None or info is None else caution(uncertainty, label, info),
        )

    def _explanation(self, row: int, uncertainty: dict[str, Any] | None) -> dict[str, Any]:
        manifest, explanation = self.manifest, self.explanation
        dominant = int(explanation.dominant[row])
        attribution = self.attributions[row] if self.attributions is not None else None
        leading = attribution[dominant].features if attribution is not None else ()
        return {
            "dominant": manifest.experts[dominant].name,
            "agreement": _rounded(explanation.agreement[row]),
            "summary": self._summary(row, uncertainty, leading),
            "experts": [
                self._expert(row, e) | (_tell_features(attribution[e]) if attribution is not None else {})
                for e in range(len(manifest.experts))
            ],
        }

    def _expert(self, row: int, e: int) -> dict[str, Any]:
        expert, explanation = self.manifest.experts[e], self.explanation
        return {
            "name": expert.name,
            "kind": expert.kind,
            "modality": expert.modality,
            "weight": _rounded(explanation.weight[row, e]),
            "probability": _rounded(explanation.expert_prediction[row, e, self.stated(row)]),
            "logits": _rounded(self.output.expert_logits[row, e]),
            "contribution": _rounded(explanation.contribution[row, e]),
            "contribution_share": _rounded(explanation.share[row, e]),
        }


def _tell_features(attribution: ExpertAttribution) -> dict[str, Any]:
    return {
        "features": [{"name": name, "attribution": round(value, _DIGITS)} for name, value in attribution.features],
        "rest": round(attribution.rest, _DIGITS),
        "base": round(attribution.base, _DIGITS),
        "gap": round(attribution.gap, _DIGITS),
    }


def _rounded(values: Any) -> Any:
    """A numpy scalar or row as Python floats of six decimals."""
    plain = values.tolist()
    return [round(v, _DIGITS) for v in plain] if isinstance(plain, list) else round(plain, _DIGITS)
