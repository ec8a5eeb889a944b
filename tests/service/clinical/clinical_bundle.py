"""The tiny bundle of tests/tiny_bundle.py as a hospital would get it: its features say what FHIR calls them.

Labs: crea (LOINC 2160-0, mg/dL), sod (2951-2, mmol/L). History: age (30525-0, a), sex (46098-0).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import onnx

from service.bundle.manifest import Manifest
from service.bundle.schema import CategoricalFeature, FeatureSchema, Modality, NumericFeature
from service.bundle.store import MODEL_FILE, REFERENCE_FILE, write_bundle
from tests.tiny_bundle import TINY_UNCERTAINTY, tiny_graph, tiny_manifest, tiny_reference

PATIENT = "p1"


def clinical_schema(*, missing: str = "learned") -> FeatureSchema:
    """Two modalities of two columns each, as in the tiny bundle."""
    labs = Modality(
        name="labs",
        features=(
            NumericFeature(name="crea", loinc=("2160-0", "38483-4"), unit="mg/dL", minimum=0.5, maximum=10.0),
            NumericFeature(name="sod", loinc=("2951-2",), unit="mmol/L", minimum=110.0, maximum=170.0),
        ),
    )
    history = Modality(
        name="history",
        features=(
            NumericFeature(name="age", loinc=("30525-0",), unit="a", minimum=18.0, maximum=100.0),
            CategoricalFeature(name="sex", loinc=("46098-0",), vocabulary=("female", "male")),
        ),
    )
    return FeatureSchema.model_validate({"modalities": (labs, history), "missing": missing})


def write_clinical_bundle(folder: Path, *, missing: str = "learned", poisoned: bool = False) -> Path:
    """Write it to `folder`, which must not exist yet."""

    def fill(staged: Path) -> None:
        onnx.save(tiny_graph(poisoned=poisoned), staged / MODEL_FILE)
        (staged / REFERENCE_FILE).write_text(json.dumps(tiny_reference()))

    def manifest(files: Any) -> Manifest:
        plain = tiny_manifest(files, missing=missing, uncertainty=TINY_UNCERTAINTY)
        return plain.model_copy(update={"features": clinical_schema(missing=missing)})

    return write_bundle(folder, fill=fill, manifest=manifest).path


def hours_ago(hours: float) -> str:
    """A FHIR dateTime that many hours before now."""
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


def observation(code: str, value: Mapping[str, Any] | float, unit: str | None = None, **changes: Any) -> dict[str, Any]:
    """A final Observation of patient `PATIENT`, an hour old: a quantity in UCUM, or the given value[x] element."""
    quantity = {"valueQuantity": {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}}
    told = dict(value) if isinstance(value, Mapping) else quantity
    resource = {
        "resourceType": "Observation",
        "id": f"o-{code}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": f"Patient/{PATIENT}"},
        "effectiveDateTime": hours_ago(1),
        **told,
        **changes,
    }
    return {name: item for name, item in resource.items() if item is not None}


def patient(**changes: Any) -> dict[str, Any]:
    """The Patient: a man of 70."""
    born = datetime.now(UTC) - timedelta(days=365.25 * 70)
    return {"resourceType": "Patient", "id": PATIENT, "birthDate": born.date().isoformat(), "gender": "male", **changes}


def searchset(*resources: dict[str, Any]) -> dict[str, Any]:
    """A Bundle as a server answers a query."""
    return {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": resource} for resource in resources]}


def hook_call(prefetch: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """The body of a patient-view call about patient `PATIENT`."""
    return {
        "hook": "patient-view",
        "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "context": {"userId": "Practitioner/x", "patientId": PATIENT},
        "prefetch": prefetch,
        **changes,
    }


def whole_prefetch() -> dict[str, Any]:
    """Everything the model wants: the tiny bundle's example, creatinine 4, sodium 140, a man of 70."""
    return {
        "patient": patient(),
        "observations1": searchset(observation("2160-0", 4, "mg/dL"), observation("2951-2", 140, "mmol/L")),
    }
