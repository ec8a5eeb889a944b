"""FHIR R4 resources as JSON, read defensively: whatever a sender put where, reading it raises nothing.

Knows how resources lie in bundles, whom they are about and how they are referred to; not what they mean.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Json = dict[str, Any]
LOINC = "http://loinc.org"
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_HISTORY = re.compile(r"/_history/[^/]*$")
_MAX_DEPTH = 4  # of bundles within bundles


class Sourced(NamedTuple):
    """A resource, and the URL that its bundle gives it."""

    resource: Json
    url: str | None

    @property
    def type(self) -> str:
        """`Observation`; plain letters whatever was sent."""
        found = self.resource.get("resourceType")
        return found if isinstance(found, str) and _TYPE.fullmatch(found) else "Resource"

    @property
    def reference(self) -> str | None:
        """`Observation/o1` where the resource has an id, else its URL if that is a urn."""
        found = self.resource.get("id")
        if isinstance(found, str) and _ID.fullmatch(found):
            return f"{self.type}/{found}"
        return self.url if self.url is not None and self.url.startswith("urn:uuid:") else None

    @property
    def name(self) -> str:
        """What a person is told: the reference, or the type alone."""
        return self.reference or self.type


def objects(value: object) -> list[Json]:
    """The JSON objects of a list, or the one object; anything else is none."""
    if isinstance(value, dict):
        return [value]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def child(value: object, name: str) -> Json:
    """An object below an object; an empty one where there is none."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def text(value: object) -> str:
    """A string without the space around it; empty for whatever is no string."""
    return value.strip() if isinstance(value, str) else ""


class Coding(NamedTuple):
    """One code of a CodeableConcept."""

    system: str
    code: str
    display: str


def codings(concept: object) -> list[Coding]:
    """The codes of a CodeableConcept."""
    listed = objects(concept.get("coding")) if isinstance(concept, dict) else []
    return [Coding(*(text(coding.get(name)) for name in Coding._fields)) for coding in listed]


def loinc_codes(concept: object) -> list[str]:
    """The LOINC codes of a CodeableConcept."""
    return [coding.code for coding in codings(concept) if coding.system == LOINC and coding.code]


def first_code(concept: object) -> str:
    """The first code, for elements that have one vocabulary, such as a condition's verificationStatus."""
    return next((coding.code for coding in codings(concept) if coding.code), "")


def read_resources(documents: Iterable[object]) -> list[Sourced]:
    """Every resource of these resources and bundles, each once: searches may answer one resource under several keys."""
    found: dict[object, Sourced] = {}
    for document in documents:
        for sourced in _unpacked(document, None, 0):
            found.setdefault(sourced.reference or id(sourced.resource), sourced)
    return list(found.values())


def _unpacked(document: object, url: str | None, depth: int) -> Iterator[Sourced]:
    if not isinstance(document, dict) or depth > _MAX_DEPTH:
        return
    if document.get("resourceType") != "Bundle":
        yield Sourced(document, url)
        return
    for entry in objects(document.get("entry")):
        yield from _unpacked(entry.get("resource"), text(entry.get("fullUrl")) or None, depth + 1)


def subject_of(resource: Json) -> str | None:
    """The reference to whom a resource is about; None where it does not say."""
    for name in ("subject", "patient"):
        if reference := text(child(resource, name).get("reference")):
            return _HISTORY.sub("", reference)
    return None


def is_about(sourced: Sourced, patient_id: str, urls: frozenset[str]) -> bool:
    """Whether a resource is this patient's, whom `urls` name too; one that names nobody is taken as it was sent."""
    if sourced.type == "Patient":
        return sourced.resource.get("id") == patient_id
    subject = subject_of(sourced.resource)
    return subject is None or subject in urls or subject.split("/")[-2:] == ["Patient", patient_id]


def patient_urls(resources: Iterable[Sourced], patient_id: str) -> frozenset[str]:
    """The URLs that bundles give to a patient's own resource."""
    own = (sourced for sourced in resources if sourced.type == "Patient" and sourced.resource.get("id") == patient_id)
    return frozenset(sourced.url for sourced in own if sourced.url is not None)


def only_patient(resources: Iterable[Sourced]) -> str | None:
    """The id of the one patient whom resources are about; None where they are about none or several.

    A Patient resource says it; without one, the subjects do.
    """
    listed = list(resources)
    own = {sourced.resource.get("id") for sourced in listed if sourced.type == "Patient"}
    subjects = {subject for sourced in listed if (subject := subject_of(sourced.resource)) is not None}
    found = own or {subject.split("/")[-1] for subject in subjects if subject.split("/")[-2:-1] == ["Patient"]}
    (patient_id,) = found if len(found) == 1 else (None,)
    return patient_id if isinstance(patient_id, str) and _ID.fullmatch(patient_id) else None
