"""FHIR resources to one record of a model's schema, and an account of it: what was used, what not, and why.

Pure: no web framework, no clock (`now` is given), nothing is fetched. What cannot be read surely is left out and listed, never
guessed; docs/clinical.md tells every rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from service.bundle.features import CategoricalFeature, CodesFeature, Feature, NumericFeature, Summary, TextFeature
from service.bundle.schema import FeatureSchema
from service.clinical import conditions, documents, observations
from service.clinical.analytes import with_siblings
from service.clinical.chart import Account, Chart
from service.clinical.observations import DIASTOLIC, MEAN_PRESSURE, SYSTOLIC, Sample, UnusableError
from service.clinical.resources import Json, Sourced, child, text
from service.clinical.times import age_years
from service.clinical.units import UnitError, convert

AGE = "30525-0"
SEX = ("46098-0", "76689-9")
_MAX_UNITS = 100  # in one record: each costs milliseconds to understand
_T = TypeVar("_T")
_SUMMARIES: dict[Summary, Callable[[Sequence[float]], float]] = {  # of numbers in the order of their times
    "last": lambda numbers: numbers[-1],
    "first": lambda numbers: numbers[0],
    "minimum": min,
    "maximum": max,
    "mean": lambda numbers: sum(numbers) / len(numbers),
    "count": lambda numbers: float(len(numbers)),
}


def is_mappable(feature: Feature) -> bool:
    """Whether a feature says how a hospital system calls it."""
    if isinstance(feature, CodesFeature):
        return feature.grouping == "icd"
    return isinstance(feature, NumericFeature | CategoricalFeature | TextFeature) and bool(feature.loinc)


def observation_codes(feature: Feature) -> tuple[str, ...]:
    """The LOINC codes whose Observations may fill a feature, the closest first; none for what no Observation fills."""
    match feature:
        case NumericFeature():
            parts = (SYSTOLIC, DIASTOLIC) if MEAN_PRESSURE in feature.loinc else ()
            return with_siblings(feature.loinc) + parts
        case CategoricalFeature():
            return feature.loinc
    return ()


@dataclass(frozen=True, slots=True)
class MappedRecord:
    """A record, and what a person and a RiskAssessment should know of where it comes from."""

    record: dict[str, Any]
    basis: tuple[Json, ...]  # FHIR References, each with the features it filled as its display
    remarks: tuple[str, ...]  # about what was used
    unusable: tuple[str, ...]  # what was not used, and why

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is known."""
        return set(self.record) <= {"id"}


def map_record(
    resources: Sequence[Sourced],
    schema: FeatureSchema,
    *,
    patient_id: str,
    now: datetime,
    conditions_known: bool = False,
) -> MappedRecord:
    """The record of one patient at `now`, which has a time zone.

    `conditions_known` says that every condition of the patient is among `resources`, so that none means: has none.
    """
    account = Account()
    wanted = frozenset(code for modality in schema.modalities for f in modality.features for code in observation_codes(f))
    chart = Chart.of(resources, account, patient_id=patient_id, now=now, wanted=wanted)
    filler = _Filler(chart, account, conditions_known)
    record: dict[str, Any] = {"id": f"Patient/{patient_id}"}
    for modality in schema.modalities:
        found = {f.name: filler.fill(f, f"{modality.name}.{f.name}") for f in modality.features if is_mappable(f)}
        if known := {name: value for name, value in found.items() if value is not None}:
            record[modality.name] = known
    return MappedRecord(record, account.basis(), account.remarks, account.unusable)


def _rests_on(used: Sequence[_T], summary: Summary) -> Sequence[_T]:
    """Of samples in the order of their times those that a summary rests on."""
    return {"last": used[-1:], "first": used[:1]}.get(summary, used)


@dataclass(frozen=True, slots=True)
class _Filler:
    """Finds the value of one feature after another. `name` is `labs.crea`."""

    chart: Chart
    account: Account
    conditions_known: bool
    units: set[str] = field(default_factory=set)  # that were met

    def fill(self, feature: Feature, name: str) -> Any:
        """The feature's value as a record holds it; None where nothing usable was sent."""
        match feature:
            case NumericFeature():
                return self._number(feature, name)
            case CategoricalFeature():
                return self._category(feature, name)
            case CodesFeature():
                return self._codes(name)
            case TextFeature():
                return self._text(feature, name)
        return None

    def _within(self, code: str, feature: NumericFeature, name: str) -> list[Sample]:
        return self.chart.within(code, feature.lookback_hours, name, self.account)

    def _number(self, feature: NumericFeature, name: str) -> float | None:
        """The person's age; else of the first code that has usable measurements their summary; else a computed pressure."""
        if AGE in feature.loinc and (age := self._age(feature, name)) is not None:
            return age
        for code in with_siblings(feature.loinc):
            found = [one for sample in self._within(code, feature, name) if (one := self._read(sample, feature, name))]
            if found:
                for sample, _, limit in _rests_on(found, feature.summary):
                    self.account.use(sample.source, name)
                    self.account.remark(name, limit)
                return _SUMMARIES[feature.summary]([number for _, number, _ in found])
        return self._mean_pressure(feature, name) if MEAN_PRESSURE in feature.loinc else None

    def _read(self, sample: Sample, feature: NumericFeature, name: str) -> tuple[Sample, float, str | None] | None:
        self.units.add(text(child(sample.holder, "valueQuantity").get("code")))
        try:
            if len(self.units) > _MAX_UNITS:
                raise UnusableError(f"comes after more than {_MAX_UNITS} different units, which no patient's record has")
            return sample, *observations.number_of(sample, feature)
        except UnusableError as error:
            self.account.reject(f"{sample.source.name} ({name})", str(error))
            return None

    def _mean_pressure(self, feature: NumericFeature, name: str) -> float | None:
        """(systolic + 2 x diastolic) / 3, of Observations that hold both."""
        systolic, diastolic = (
            {id(s.source.resource): one for s in self._within(code, feature, name) if (one := self._read(s, feature, name))}
            for code in (SYSTOLIC, DIASTOLIC)
        )
        pairs = [(upper, diastolic[key]) for key, upper in systolic.items() if key in diastolic]
        exact = [(upper, lower) for upper, lower in pairs if upper[2] is None and lower[2] is None]
        if not exact:
            return None
        for upper, _ in _rests_on(exact, feature.summary):
            self.account.use(upper[0].source, name)
        self.account.remark(name, "is computed as (systolic + 2 x diastolic) / 3")
        return _SUMMARIES[feature.summary]([(upper[1] + 2 * lower[1]) / 3 for upper, lower in exact])

    def _age(self, feature: NumericFeature, name: str) -> float | None:
        patient = self.chart.patient
        found = age_years(patient.resource.get("birthDate"), now=self.chart.now) if patient is not None else None
        if patient is None or found is None:
            return None
        years, remark = found
        try:
            age = convert(years, "a", feature.unit or "")
        except UnitError:
            self.account.reject(f"{patient.name} ({name})", "tells an age in years, which the feature's unit is not")
            return None
        self.account.use(patient, name)
        self.account.remark(name, remark)
        return age

    def _category(self, feature: CategoricalFeature, name: str) -> str | None:
        """What the newest usable Observation says; the person's sex where none does."""
        for code in feature.loinc:
            for sample in reversed(self.chart.within(code, None, name, self.account)):
                try:
                    word = observations.category_of(sample, feature)
                except UnusableError as error:
                    self.account.reject(f"{sample.source.name} ({name})", str(error))
                    continue
                self.account.use(sample.source, name)
                return word
        return self._sex(feature, name) if set(SEX) & set(feature.loinc) else None

    def _sex(self, feature: CategoricalFeature, name: str) -> str | None:
        patient = self.chart.patient
        if patient is None or not (gender := text(patient.resource.get("gender"))):
            return None
        word = observations.vocabulary_word([gender], feature)
        if word is None:
            self.account.reject(f"{patient.name} ({name})", "has a gender that is not in the model's vocabulary for this feature")
            return None
        self.account.use(patient, name)
        return word

    def _codes(self, name: str) -> list[str] | None:
        coded = [(sourced, codes) for sourced in self.chart.conditions if (codes := conditions.icd_codes(sourced.resource))]
        if num_without := len(self.chart.conditions) - len(coded):
            self.account.reject(name, f"does not count {num_without} conditions without an ICD-9-CM or ICD-10 code")
        for sourced, _ in coded:
            self.account.use(sourced, name)
        self.account.remark(name, conditions.past_remark([sourced.resource for sourced, _ in coded]))
        found = list(dict.fromkeys(code for _, codes in coded for code in codes))
        return found if found or (self.conditions_known and not num_without) else None

    def _text(self, feature: TextFeature, name: str) -> str | None:
        """The newest document of the feature's types that can be read."""
        for sourced in documents.newest_first(self.chart.documents, feature.loinc, now=self.chart.now):
            try:
                written = documents.plain_text(sourced.resource)
            except UnusableError as error:
                self.account.reject(f"{sourced.name} ({name})", str(error))
                continue
            self.account.use(sourced, name)
            return written
        return None
