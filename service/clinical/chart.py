"""One patient's FHIR resources, sorted for reading, and an account of what came of them.

Texts name resources and features, never a value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.clinical import conditions, documents, observations
from service.clinical.observations import Sample
from service.clinical.resources import Json, Sourced, is_about, patient_urls

_MAX_TOLD = 100  # sentences of each kind


@dataclass(slots=True)
class Account:
    """What was used, what should be known of it, and what was not used. Sentences are kept once, in order."""

    _basis: dict[str, list[str]] = field(default_factory=dict)
    _remarks: dict[str, None] = field(default_factory=dict)
    _unusable: dict[str, None] = field(default_factory=dict)

    def use(self, source: Sourced, name: str) -> None:
        """A feature rests on this resource."""
        if name not in (names := self._basis.setdefault(source.name, [])):
            names.append(name)

    def remark(self, name: str, sentence: str | None) -> None:
        """Something to know about a feature's value; None: nothing."""
        if sentence is not None and len(self._remarks) < _MAX_TOLD:
            self._remarks[f"{name} {sentence}"] = None

    def reject(self, what: str, sentence: str) -> None:
        """Something was not used."""
        if len(self._unusable) < _MAX_TOLD:
            self._unusable[f"{what} {sentence}"] = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about what was used."""
        return tuple(self._remarks)

    @property
    def unusable(self) -> tuple[str, ...]:
        """Sentences about what was not used."""
        return tuple(self._unusable)

    def basis(self) -> tuple[Json, ...]:
        """FHIR References to what was used, each with the features that rest on it as its display."""
        told = ((name, ", ".join(features)) for name, features in self._basis.items())
        return tuple({**({"reference": name} if _is_reference(name) else {}), "display": shown} for name, shown in told)


def _is_reference(name: str) -> bool:
    """A resource without id and URL is named by its type alone."""
    return "/" in name or ":" in name


@dataclass(frozen=True, slots=True)
class Chart:
    """One patient's resources without those that must not be read."""

    now: datetime
    patient: Sourced | None
    samples: dict[str, list[Sample]]  # by LOINC code
    conditions: list[Sourced]
    documents: list[Sourced]

    @classmethod
    def of(
        cls, resources: Sequence[Sourced], account: Account, *, patient_id: str, now: datetime, wanted: frozenset[str]
    ) -> "Chart":
        """Sort what is this patient's. Observations of no `wanted` code are passed over without a word."""
        own = list(_own(resources, patient_id, account))
        chart = cls(now, next((sourced for sourced in own if sourced.type == "Patient"), None), {}, [], [])
        for sourced in own:
            chart._sort(sourced, account, wanted)
        return chart

    def _sort(self, sourced: Sourced, account: Account, wanted: frozenset[str]) -> None:
        resource = sourced.resource
        match sourced.type:
            case "Observation":
                self._add_samples(sourced, account, wanted)
            case "Condition":
                if _is_good(sourced, conditions.status_problem(resource), account):
                    self.conditions.append(sourced)
            case "DocumentReference":
                if _is_good(sourced, documents.status_problem(resource), account):
                    self.documents.append(sourced)
            case "Patient" | "OperationOutcome":
                pass
            case other:
                account.reject(other, "resources are not read by this service")

    def _add_samples(self, sourced: Sourced, account: Account, wanted: frozenset[str]) -> None:
        found = [sample for sample in observations.samples(sourced, now=self.now) if sample.code in wanted]
        if found and _is_good(sourced, observations.status_problem(sourced.resource), account):
            for sample in found:
                self.samples.setdefault(sample.code, []).append(sample)

    def within(self, code: str, lookback_hours: float | None, name: str, account: Account) -> list[Sample]:
        """The samples of a code of the last hours before now (None: ever), in the order of their times."""
        placed = []
        for sample in self.samples.get(code, []):
            if sample.time is None:
                account.reject(f"{sample.source.name} ({name})", "does not say when it was measured")
            elif sample.time > self.now:
                account.reject(f"{sample.source.name} ({name})", "lies in the future")
            elif lookback_hours is not None and (self.now - sample.time).total_seconds() > 3600 * lookback_hours:
                account.reject(name, f"has measurements from before the last {lookback_hours:g} hours, which do not count")
            else:
                placed.append((sample.time, sample))
        return [sample for _, sample in sorted(placed, key=lambda pair: pair[0])]  # stable: of one time, as they were sent


def _own(resources: Iterable[Sourced], patient_id: str, account: Account) -> Iterable[Sourced]:
    """The resources of this patient; those of others are a mistake that is told."""
    listed = list(resources)
    urls = patient_urls(listed, patient_id)
    for sourced in listed:
        if is_about(sourced, patient_id, urls):
            yield sourced
        else:
            account.reject(sourced.name, "is about another patient")


def _is_good(sourced: Sourced, problem: str | None, account: Account) -> bool:
    if problem is not None:
        account.reject(sourced.name, problem)
    return problem is None
