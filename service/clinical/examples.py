"""The bundle's example record as FHIR resources: what a client can try in /docs.json, and what tests read back."""

import base64
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from service.bundle.features import CategoricalFeature, CodesFeature, Feature, NumericFeature, TextFeature
from service.bundle.icd import FHIR_SYSTEMS
from service.bundle.schema import FeatureSchema
from service.clinical.observations import UCUM
from service.clinical.record import AGE, SEX, is_mappable
from service.clinical.resources import LOINC, Json

PATIENT_ID = "example"
_ABOUT = {"reference": f"Patient/{PATIENT_ID}"}
_SYSTEM_OF = {edition: system for system, edition in reversed(FHIR_SYSTEMS.items())}


def example_resources(record: Mapping[str, Any], schema: FeatureSchema, *, now: datetime) -> list[Json]:
    """The resources that say what of a record FHIR can say, measured just before `now`. Flat vectors are passed over."""
    patient: Json = {"resourceType": "Patient", "id": PATIENT_ID}
    resources: list[Json] = [patient]
    for modality in schema.modalities:
        named = record.get(modality.name)
        values: Mapping[str, Any] = named if isinstance(named, Mapping) else {}
        for feature in modality.features:
            if is_mappable(feature) and (value := values.get(feature.name)) is not None:
                made = list(_resources(feature, value, patient, now))
                resources += [{**one, "id": f"example-{len(resources) + n}"} for n, one in enumerate(made)]
    return resources


def _resources(feature: Feature, value: Any, patient: Json, now: datetime) -> Iterator[Json]:
    match feature:
        case NumericFeature() if AGE in feature.loinc and feature.unit == "a":
            patient["birthDate"] = (now - timedelta(days=365.25 * value)).date().isoformat()
        case NumericFeature():
            unit = {"unit": feature.unit, "system": UCUM, "code": feature.unit} if feature.unit else {}
            yield _observation(feature, {"valueQuantity": {"value": value, **unit}}, now)
        case CategoricalFeature() if set(SEX) & set(feature.loinc) and str(value).lower() in ("male", "female"):
            patient["gender"] = str(value).lower()
        case CategoricalFeature():
            yield _observation(feature, {"valueCodeableConcept": {"text": str(value)}}, now)
        case CodesFeature():
            yield from map(_condition, value.split(feature.separator) if isinstance(value, str) else value)
        case TextFeature():
            yield _document(feature, value, now)


def _observation(feature: Feature, value: Json, now: datetime) -> Json:
    code = {"coding": [{"system": LOINC, "code": feature.loinc[0]}]}
    time = {"effectiveDateTime": (now - timedelta(minutes=5)).isoformat()}
    return {"resourceType": "Observation", "status": "final", "code": code, "subject": _ABOUT, **time, **value}


def _condition(code: str) -> Json:
    edition, _, bare = code.partition(":")
    coding = {"system": _SYSTEM_OF[edition.lower()], "code": bare}
    return {"resourceType": "Condition", "code": {"coding": [coding]}, "subject": _ABOUT}


def _document(feature: TextFeature, value: str, now: datetime) -> Json:
    attachment = {"contentType": "text/plain; charset=utf-8", "data": base64.b64encode(value.encode()).decode()}
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "type": {"coding": [{"system": LOINC, "code": feature.loinc[0]}]},
        "subject": _ABOUT,
        "date": (now - timedelta(minutes=5)).isoformat(),
        "content": [{"attachment": attachment}],
    }


def bundle_of(resources: list[Json], type_: str) -> Json:
    """A Bundle: of type searchset as a server answers a query, or collection."""
    total = {"total": len(resources)} if type_ == "searchset" else {}
    return {"resourceType": "Bundle", "type": type_, **total, "entry": [{"resource": resource} for resource in resources]}


def example_prefetch(templates: Mapping[str, str], resources: list[Json]) -> dict[str, Json]:
    """What an EHR would send for these templates."""
    (patient,) = (one for one in resources if one["resourceType"] == "Patient")
    sent = {"patient": patient}
    for key, template in templates.items():
        type_, _, query = template.partition("?")
        asked = query.rpartition("=")[2].split(",") if type_ != "Condition" else []
        found = [one for one in resources if one["resourceType"] == type_ and _is_asked(one, asked)]
        sent.setdefault(key, bundle_of(found, "searchset"))
    return sent


def _is_asked(resource: Json, asked: list[str]) -> bool:
    concept: Json = resource.get("type") or resource.get("code") or {}
    return not asked or any(f"{coding['system']}|{coding['code']}" in asked for coding in concept["coding"])
