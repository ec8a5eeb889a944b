"""Observations by LOINC code: what was measured when, in a feature's own unit or words, and why a value cannot be used.

Texts name resources, features and units, never a value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.bundle.features import CategoricalFeature, NumericFeature, UnfitValueError, category_text, read_number
from service.clinical.analytes import analyte_of
from service.clinical.resources import Json, Sourced, child, codings, loinc_codes, objects, text
from service.clinical.times import observed_at
from service.clinical.units import UnitError, convert

FINAL_STATUSES = ("final", "amended", "corrected")
UCUM = "http://unitsofmeasure.org"
MEAN_PRESSURE, SYSTOLIC, DIASTOLIC = "8478-0", "8480-6", "8462-4"
_COMPARATORS = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}
_SAME_WORDS = (  # for vocabularies that hold nothing else
    (frozenset({"true", "yes", "y", "1"}), frozenset({"false", "no", "n", "0"})),
    (frozenset({"male", "m"}), frozenset({"female", "f"})),
)


class UnusableError(ValueError):
    """Why one value cannot be used, as the end of a sentence that begins with its resource."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one LOINC code, of an Observation or of a component of one."""

    code: str
    time: datetime | None
    holder: Json  # the Observation or its component
    source: Sourced


def status_problem(observation: Json) -> str | None:
    """Why an Observation must not be read; None where it may."""
    status = text(observation.get("status"))
    if status in FINAL_STATUSES:
        return None
    shown = f"has status {status}" if status.replace("-", "").isalpha() and len(status) < 32 else "has no known status"
    return f"{shown}; expected {', '.join(FINAL_STATUSES[:-1])} or {FINAL_STATUSES[-1]}"


def samples(source: Sourced, *, now: datetime) -> Iterator[Sample]:
    """Everything that an Observation says, by code; its components were measured when it was."""
    observation = source.resource
    time = observed_at(observation, now=now)
    for holder in (observation, *objects(observation.get("component"))):
        for code in loinc_codes(holder.get("code")):
            yield Sample(code, time, holder, source)


def number_of(sample: Sample, feature: NumericFeature) -> tuple[float, str | None]:
    """A sample in the feature's unit, and a remark where it is only a limit. Raises `UnusableError`."""
    holder = sample.holder
    if "valueInteger" in holder and feature.unit in (None, "1"):
        return _finite(holder["valueInteger"]), None
    quantity = child(holder, "valueQuantity")
    if not quantity:
        raise UnusableError(_no_value(holder, "a valueQuantity"))
    value = _finite(quantity.get("value"))
    unit = _unit_of(quantity, feature)
    try:
        converted = value if feature.unit is None else convert(value, unit, feature.unit, analyte_of(sample.code))
    except UnitError as error:
        raise UnusableError(f"is not in a unit that can be used: {error}") from None
    return _finite(converted), _limit(quantity)


def _finite(value: object) -> float:
    try:
        return read_number(value)
    except UnfitValueError as error:
        raise UnusableError(f"has a value that {error}") from None


def _unit_of(quantity: Json, feature: NumericFeature) -> str:
    """A quantity's UCUM code, or a unit without one that is spelled just like the feature's."""
    code, unit = text(quantity.get("code")), text(quantity.get("unit"))
    if feature.unit is None:
        if (code or unit) in ("", "1"):
            return "1"
        raise UnusableError("has a unit, and the model does not say in which unit it expects this feature")
    if text(quantity.get("system")) == UCUM and code:
        return code
    if (unit or code) == feature.unit:
        return feature.unit
    raise UnusableError(f"has no UCUM unit; expected {feature.unit} or a unit that can be converted to it")


def _limit(quantity: Json) -> str | None:
    comparator = quantity.get("comparator")
    if comparator is None:
        return None
    if isinstance(comparator, str) and comparator in _COMPARATORS:
        return f"is known as {_COMPARATORS[comparator]} a limit, and the limit is used"
    raise UnusableError("has a comparator that is none of <, <=, >=, >")


def _no_value(holder: Json, wanted: str) -> str:
    if "dataAbsentReason" in holder:
        return "says that the value is absent"
    return f"has no value of the kind this feature needs; expected {wanted}"


def category_of(sample: Sample, feature: CategoricalFeature) -> str:
    """The word of the feature's vocabulary that a sample says. Raises `UnusableError`."""
    words = list(_words(sample.holder))
    if not words:
        raise UnusableError(_no_value(sample.holder, "a valueCodeableConcept, valueBoolean, valueString or valueInteger"))
    found = vocabulary_word(words, feature)
    if found is None:
        raise UnusableError("has a value that is not in the model's vocabulary for this feature")
    return found


def _words(holder: Json) -> Iterator[object]:
    for name in ("valueBoolean", "valueString", "valueInteger"):
        if name in holder:
            yield holder[name]
    concept = holder.get("valueCodeableConcept")
    for coding in codings(concept):
        yield coding.code
        yield coding.display
    yield child(holder, "valueCodeableConcept").get("text")


def vocabulary_word(words: Sequence[Any], feature: CategoricalFeature) -> str | None:
    """The first of these words that the vocabulary knows, whatever its case; yes, true and 1 are one word, so are male and M."""
    known = {word.lower(): word for word in feature.vocabulary}
    groups = [group for pair in _SAME_WORDS if set(known) <= pair[0] | pair[1] for group in pair]
    for word in words:
        spelled = _spelled(word)
        if spelled in known:
            return known[spelled]
        alike = next((known.keys() & group for group in groups if spelled in group), set())
        if len(alike) == 1:
            return known[alike.pop()]
    return None


def _spelled(word: object) -> str:
    try:
        return category_text(word).lower()
    except UnfitValueError:
        return ""
