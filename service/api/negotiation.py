"""In which format a request is answered: what its Accept header wants, and whether that is FHIR R4 or plain JSON."""

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

FHIR_JSON = "application/fhir+json; fhirVersion=4.0"
FHIR_PREFIX = "/fhir/"  # paths that speak FHIR whatever is accepted
_NEGOTIATED = "/predict"
_MATCH_JSON = ("application/json", "application/*", "*/*")  # the most specific range decides (RFC 9110, 12.5.1)


def answers_fhir(connection: HTTPConnection) -> bool:
    """Whether this request is answered in FHIR, its refusals included."""
    path = connection.scope["path"]
    return path.startswith(FHIR_PREFIX) or (path == _NEGOTIATED and _accepts_fhir(connection.headers))


def _accepts_fhir(headers: Headers) -> bool:
    """Whether FHIR is named and wanted at least as much as plain JSON."""
    accepted = headers.get("accept", "")
    if "fhir+json" not in accepted:  # nearly every request
        return False
    wanted = media_ranges(accepted)
    fhir = wanted.get("application/fhir+json", 0.0)
    json = next((wanted[name] for name in _MATCH_JSON if name in wanted), 0.0)
    return fhir > 0 and fhir >= json


def media_ranges(accepted: str) -> dict[str, float]:
    """The media ranges of an Accept header, each with how much it is wanted, 0 to 1 (RFC 9110, 12.5.1)."""
    return {name.strip().lower(): _q(options) for name, *options in (part.split(";") for part in accepted.split(","))}


def _q(options: list[str]) -> float:
    """A range's weight; one that cannot be read counts as not wanted."""
    for option in options:
        name, _, value = option.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0
