"""Which services a model offers to CDS Hooks, and the FHIR queries for what its features need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.bundle.features import CodesFeature, TextFeature
from service.bundle.manifest import Manifest
from service.bundle.schema import FeatureSchema
from service.clinical.hooks import HOOKS, PATIENT_VIEW
from service.clinical.observations import DIASTOLIC, MEAN_PRESSURE, SYSTOLIC
from service.clinical.record import AGE, SEX, is_mappable, observation_codes
from service.clinical.resources import LOINC

CODES_PER_QUERY = 20  # about 500 characters, which every server takes
_PATIENT = "{{context.patientId}}"
_PRESSURE_PANELS = ("85354-9", "55284-4")  # `code` finds an Observation by its own code, not by its components'
_FROM_PATIENT = {AGE, *SEX}


@dataclass(frozen=True, slots=True)
class CdsService:
    """One service of CDS Hooks: a model at one hook."""

    id: str
    hook: str
    prefetch: dict[str, str]

    def missing(self, prefetch: Mapping[str, Any] | None) -> list[str]:
        """The keys that were not sent: absent, null, or a server's refusal in their place."""
        sent = prefetch or {}
        return [key for key in self.prefetch if not _is_data(sent.get(key))]


def _is_data(value: object) -> bool:
    return isinstance(value, dict) and value.get("resourceType") != "OperationOutcome"


def services(manifest: Manifest) -> list[CdsService]:
    """The services of a model; none where no feature says what hospital systems call it."""
    if not any(is_mappable(feature) for modality in manifest.features.modalities for feature in modality.features):
        return []
    templates = prefetch_templates(manifest.features)
    return [CdsService(f"{manifest.name}-{hook}", hook, templates) for hook in HOOKS]


def prefetch_templates(schema: FeatureSchema) -> dict[str, str]:
    """A FHIR query per key: the patient, observations by LOINC code, and conditions and documents where features need them."""
    features = [feature for modality in schema.modalities for feature in modality.features if is_mappable(feature)]
    templates = {"patient": f"Patient/{_PATIENT}"}
    for number, codes in enumerate(_chunks(_wanted_codes(schema)), start=1):
        tokens = ",".join(f"{LOINC}|{code}" for code in codes)
        templates[f"observations{number}"] = f"Observation?patient={_PATIENT}&code={tokens}"
    if any(isinstance(feature, CodesFeature) for feature in features):
        templates["conditions"] = f"Condition?patient={_PATIENT}"
    if types := [code for feature in features if isinstance(feature, TextFeature) for code in feature.loinc]:
        tokens = ",".join(f"{LOINC}|{code}" for code in dict.fromkeys(types))
        templates["documents"] = f"DocumentReference?patient={_PATIENT}&type={tokens}"
    return templates


def _wanted_codes(schema: FeatureSchema) -> list[str]:
    """Every LOINC code that an Observation may fill a feature by, but for what the Patient resource says."""
    features = (feature for modality in schema.modalities for feature in modality.features)
    codes = dict.fromkeys(code for feature in features for code in observation_codes(feature) if code not in _FROM_PATIENT)
    if {MEAN_PRESSURE, SYSTOLIC, DIASTOLIC} & set(codes):
        codes |= dict.fromkeys(_PRESSURE_PANELS)
    return list(codes)


def _chunks(codes: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(codes), CODES_PER_QUERY):
        yield codes[start : start + CODES_PER_QUERY]


def discovery(manifest: Manifest) -> dict[str, Any]:
    """GET /cds-services."""
    return {"services": [_described(service, manifest) for service in services(manifest)]}


def _described(service: CdsService, manifest: Manifest) -> dict[str, Any]:
    outcome, card = manifest.task.outcome, manifest.model_card
    moment = "when a patient's record is opened" if service.hook == PATIENT_VIEW else "when a patient is to be discharged"
    needs = "Every modality of the model must be known." if manifest.features.missing == "reject" else "Missing data are told."
    return {
        "hook": service.hook,
        "id": service.id,
        "title": f"{outcome[:1].upper()}{outcome[1:]} ({manifest.name} {manifest.version})",
        "description": f"Predicts {outcome} {moment}, and says what the prediction rests on. Research use, not for clinical "
        f"decisions. Population: {card.population}",
        "prefetch": service.prefetch,
        "usageRequirements": f"Reads prefetch alone and never calls the FHIR server. {needs}",
    }
