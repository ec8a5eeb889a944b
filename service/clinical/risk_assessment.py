"""Predictions as FHIR R4 RiskAssessments (hl7.org/fhir/R4/riskassessment.html).

`probabilityDecimal` is a percentage, 0 to 100, by invariant ras-2 of the resource. A binary task has one prediction, of the
event; multiclass and multilabel tasks one per label, of which the predicted one carries the explanation; regression one
without a probability, whose value is in an extension.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from service.bundle.answers import Prediction
from service.bundle.card import NOTICE
from service.bundle.features import ArrayFeature
from service.bundle.manifest import Manifest, TaskInfo
from service.bundle.schema import Modality
from service.clinical.extensions import (
    CANONICAL,
    EXPERT,
    EXPLANATION,
    MISSING_INPUT,
    PREDICTED_LABEL,
    PREDICTED_VALUE,
    UNCERTAINTY,
    build,
)
from service.clinical.outcome import Resource, failed_outcome

_RISK_PROBABILITY = "http://terminology.hl7.org/CodeSystem/risk-probability"
_LEVELS = {
    "negligible": "Negligible likelihood",
    "low": "Low likelihood",
    "moderate": "Moderate likelihood",
    "high": "High likelihood",
}
_BAND_WORDS = {"very low": "negligible", "minimal": "negligible", "medium": "moderate", "intermediate": "moderate"}
_RANKS = ("low", "moderate", "high")
_REFERENCE = re.compile(r"(?:https?://[^\s]+/)?(Patient|Group)/[A-Za-z0-9.-]{1,64}")
_PERCENT_DIGITS = 4


def answer_document(
    predictions: Sequence[Prediction], *, manifest: Manifest, sha256: str, basis: Sequence[Resource] | None = None
) -> Resource:
    """One prediction as a RiskAssessment, several as a Bundle with an OperationOutcome in the place of each that failed.

    `basis` tells the FHIR resources that the one prediction was made from.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    resources = [
        risk_assessment(prediction, manifest=manifest, sha256=sha256, occurrence=now, basis=basis)
        if prediction["status"] == "ok"
        else failed_outcome(prediction)
        for prediction in predictions
    ]
    if len(resources) == 1:
        return resources[0]
    entries = [{"fullUrl": f"urn:uuid:{uuid4()}", "resource": resource} for resource in resources]
    return {"resourceType": "Bundle", "type": "collection", "timestamp": now, "entry": entries}


def risk_assessment(
    prediction: Prediction, *, manifest: Manifest, sha256: str, occurrence: str, basis: Sequence[Resource] | None = None
) -> Resource:
    """One prediction; without a `basis` of FHIR resources, the features that the record held are its basis."""
    used = basis if basis is not None else _features_used(prediction, manifest.features.modalities)
    return {
        "resourceType": "RiskAssessment",
        "contained": [_device(manifest, sha256)],
        "extension": [
            build(PREDICTED_LABEL, prediction["label"]),
            *(build(MISSING_INPUT, name) for name in prediction["missing"]),
        ],
        "status": "final",
        "method": _method(manifest),
        "subject": subject_of(prediction["id"]),
        "occurrenceDateTime": occurrence,
        "performer": {"reference": "#model", "display": f"{manifest.name} {manifest.version}"},
        **({"basis": list(used)} if used else {}),
        "prediction": _predictions(prediction, manifest.task),
        "note": [{"text": text} for text in (NOTICE, *prediction["warnings"])],
    }


def subject_of(record_id: str | int | None) -> Resource:
    """Whom a record is about: its id as a reference where it looks like one, else as an identifier, else nobody known."""
    if record_id is None or not str(record_id).strip():
        return {"type": "Patient", "display": "A patient whose identity was not sent"}
    if match := _REFERENCE.fullmatch(str(record_id)):
        return {"reference": str(record_id), "type": match[1]}
    return {"type": "Patient", "identifier": {"value": str(record_id)}}


def _device(manifest: Manifest, sha256: str) -> Resource:
    return {
        "resourceType": "Device",
        "id": "model",
        "deviceName": [{"name": manifest.name, "type": "model-name"}],
        "version": [{"value": manifest.version}, {"type": {"text": "sha256"}, "value": sha256}],
    }


def _method(manifest: Manifest) -> Resource:
    coding = {"system": f"{CANONICAL}/CodeSystem/model", "version": manifest.version, "code": manifest.name}
    return {"coding": [coding], "text": f"I2MoE model {manifest.name}, version {manifest.version}"}


def _features_used(prediction: Prediction, modalities: Sequence[Modality]) -> list[Resource]:
    """Per modality what of it was known, by name; values stay with who sent them."""
    missing = set(prediction["missing"])
    used = []
    for modality in modalities:
        names = [f.name for f in modality.features if f"{modality.name}.{f.name}" not in missing or isinstance(f, ArrayFeature)]
        if modality.name not in missing and names:
            used.append({"display": f"{modality.name}: {', '.join(names)}"})
    return used


def _predictions(prediction: Prediction, task: TaskInfo) -> list[Resource]:
    label, told = prediction["label"], _told(prediction, task)
    rationale = {"rationale": prediction["explanation"]["summary"]} if "explanation" in prediction else {}
    if task.kind == "regression":
        value = build(PREDICTED_VALUE, prediction["probability"])
        return [{"extension": [value, *told], "outcome": {"text": task.outcome}, **rationale}]
    if task.kind == "binary":
        level = qualitative_risk(prediction["risk_band"], task)
        risk = {"probabilityDecimal": _percent(prediction["probability"]), **({"qualitativeRisk": level} if level else {})}
        return [{**_extended(told), "outcome": {"text": task.outcome}, **risk, **rationale}]
    return [
        {
            **(_extended(told) if name == label else {}),
            "outcome": {"text": f"{task.outcome}: {name}"},
            "probabilityDecimal": _percent(probability),
            **(rationale if name == label else {}),
        }
        for name, probability in prediction["probabilities"].items()
    ]


def _extended(extensions: list[Resource]) -> Resource:
    return {"extension": extensions} if extensions else {}


def _percent(probability: float) -> float:
    return round(100 * probability, _PERCENT_DIGITS)


def _told(prediction: Prediction, task: TaskInfo) -> list[Resource]:
    """Explanation and uncertainty as extensions."""
    told = []
    if explanation := prediction.get("explanation"):
        told.append(build(EXPLANATION, {"dominant": explanation["dominant"], "agreement": explanation["agreement"]}))
        told += [build(EXPERT, _expert(expert, task)) for expert in explanation["experts"]]
    if uncertainty := prediction.get("uncertainty"):
        low, high = uncertainty.get("interval", (None, None))
        dashed = {name.replace("_", "-"): value for name, value in uncertainty.items()}
        told.append(build(UNCERTAINTY, {**dashed, "low": low, "high": high}))
    return told


def _expert(expert: Mapping[str, Any], task: TaskInfo) -> dict[str, Any]:
    answer = expert["probability"] if task.kind == "regression" else _percent(expert["probability"])
    renamed = {"answer": answer, "logit": expert["logits"], "contribution-share": expert["contribution_share"]}
    return {**expert, **renamed, "feature": expert.get("features")}


def qualitative_risk(band: str | None, task: TaskInfo) -> Resource | None:
    """The band in FHIR's words beside the model's own; None where the model has no bands.

    A band that is named like one of FHIR's levels is that level, others by their place among the bands. No risk is told as
    certain, however high its band.
    """
    if band is None:
        return None
    names = [risk_band.name for risk_band in task.risk_bands]
    word = band.lower()
    rank = _RANKS[names.index(band) * len(_RANKS) // len(names)]
    level = word if word in _LEVELS else _BAND_WORDS.get(word, rank)
    return {"coding": [{"system": _RISK_PROBABILITY, "code": level, "display": _LEVELS[level]}], "text": band}
