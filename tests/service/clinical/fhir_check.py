"""FHIR resources checked by a library that others keep, and the rules that it does not check."""

from typing import Any

from fhir.resources.R4B import get_fhir_model_class


def assert_fhir(resource: dict[str, Any]) -> None:
    """`resource` is valid R4: every element known and of its type, contained resources and entries included."""
    get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    for place, value in _walk(resource, resource["resourceType"]):
        assert value not in (None, "", [], {}), f"{place} is empty, which FHIR's JSON does not allow"
        if place.endswith(".probabilityDecimal"):
            assert 0 <= value <= 100, f"ras-2: {place} is {value}"
        if place.endswith(".extension") and isinstance(value, list):
            assert all(("extension" in one) != any(name.startswith("value") for name in one) for one in value), f"ext-1: {place}"


def _walk(value: Any, place: str) -> Any:
    yield place, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, f"{place}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, place)
