"""Conditions by their ICD codes, for features whose vocabulary groups codes (`service.bundle.icd`).

Procedures are not read: their ICD codes are none of diagnoses, and ICD-9-CM's (39.61) look like codes of diagnoses (396.1).
"""

from collections.abc import Sequence

from service.bundle.icd import FHIR_SYSTEMS, icd_groups
from service.clinical.resources import Json, codings, first_code

_EXCLUDED = ("entered-in-error", "refuted")
_PAST = ("inactive", "remission", "resolved")


def status_problem(condition: Json) -> str | None:
    """Why a Condition does not count; None where it does."""
    status = first_code(condition.get("verificationStatus"))
    return f"has verificationStatus {status}" if status in _EXCLUDED else None


def is_past(condition: Json) -> bool:
    """Whether a Condition is no longer active."""
    return first_code(condition.get("clinicalStatus")) in _PAST


def icd_codes(condition: Json) -> list[str]:
    """A Condition's ICD codes with their editions, as in `icd10:I50.9`; what does not look like a code is left out."""
    named = (coding for coding in codings(condition.get("code")) if coding.system in FHIR_SYSTEMS)
    codes = [f"{FHIR_SYSTEMS[coding.system]}:{coding.code}" for coding in named]
    return [code for code in codes if _is_code(code)]


def _is_code(code: str) -> bool:
    try:
        icd_groups(code)
    except ValueError:
        return False
    return True


def past_remark(conditions: Sequence[Json]) -> str | None:
    """That some of the conditions that count are past; None where none is."""
    num_past = sum(map(is_past, conditions))
    return f"counts {num_past} of {len(conditions)} conditions that are inactive, in remission or resolved" if num_past else None
