"""In which of two formats a request is answered: plain JSON, or FHIR R4."""

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

FHIR_JSON = "application/fhir+json; fhirVersion=4.0"
FHIR_PREFIX = "/fhir/"  # paths that speak FHIR whatever is accepted
_NEGOTIATED = "/predict"


def answers_fhir(connection: HTTPConnection) -> bool:
    """Whether this request is answered in FHIR, its refusals included."""
    path = connection.scope["path"]
    return path.startswith(FHIR_PREFIX) or (path == _NEGOTIATED and _accepts_fhir(connection.headers))


def _accepts_fhir(headers: Headers) -> bool:
    """Whether FHIR is named and wanted at least as much as plain JSON."""
    accepted = headers.get("accept", "")
    if "fhir+json" not in accepted:  # nearly every request
        return False
    wanted = dict(map(_media_range, accepted.split(",")))
    fhir = wanted.get("application/fhir+json", 0.0)
    return fhir > 0 and fhir >= wanted.get("application/json", 0.0)


def _media_range(text: str) -> tuple[str, float]:
    """`application/json;q=0.5` as its type and quality; a quality that is none counts as 0."""
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    qualities = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
    try:
        return media_type, float(qualities[0]) if qualities else 1.0
    except ValueError:
        return media_type, 0.0
