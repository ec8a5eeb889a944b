"""FHIR resources to a record: every rule of docs/clinical.md, and that nothing whatsoever makes the mapper fail or guess."""

import base64
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.features import CategoricalFeature, CodesFeature, Feature, NumericFeature, Summary, TextFeature
from service.bundle.schema import ArrayFeature, FeatureSchema, Modality
from service.clinical.record import MappedRecord, is_mappable, map_record
from service.clinical.resources import read_resources
from tests.service.clinical.clinical_bundle import PATIENT

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def schema_of(*features: Feature) -> FeatureSchema:
    """One modality, labs, of these features."""
    return FeatureSchema(modalities=(Modality(name="labs", features=features),))


def crea(**changes: Any) -> NumericFeature:
    """Creatinine in mg/dL."""
    told = {"name": "crea", "loinc": ("2160-0", "38483-4"), "unit": "mg/dL", "minimum": 0.1, "maximum": 10.0, **changes}
    return NumericFeature(**told)


def quantity(value: Any, unit: str = "mg/dL", **changes: Any) -> dict[str, Any]:
    """value[x] as a quantity in UCUM."""
    return {"valueQuantity": {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit, **changes}}


def observed(value: dict[str, Any], hours: float = 1, code: str = "2160-0", **changes: Any) -> dict[str, Any]:
    """A final Observation `hours` before now."""
    return {
        "resourceType": "Observation",
        "id": f"o{hours:g}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": f"Patient/{PATIENT}"},
        "effectiveDateTime": (NOW - timedelta(hours=hours)).isoformat(),
        **value,
        **changes,
    }


def mapped(schema: FeatureSchema, *resources: Any, conditions_known: bool = False) -> MappedRecord:
    """The record of these resources."""
    return map_record(read_resources(resources), schema, patient_id=PATIENT, now=NOW, conditions_known=conditions_known)


def value(feature: Feature, *resources: Any, **options: Any) -> Any:
    """What the record says of one feature; None where it says nothing. The record always fits the schema."""
    schema = schema_of(feature)
    found = mapped(schema, *resources, **options)
    if not found.is_empty:
        schema.encode(found.record)
    return found.record.get("labs", {}).get(feature.name)


def complaint(feature: Feature, *resources: Any) -> str:
    """Why nothing could be used."""
    found = mapped(schema_of(feature), *resources)
    assert found.is_empty, found
    return "; ".join(found.unusable)


def test_a_measurement_becomes_the_value_of_its_feature() -> None:
    """By LOINC code, with the Observation as its basis."""
    found = mapped(schema_of(crea()), observed(quantity(1.4)))
    assert found.record == {"id": f"Patient/{PATIENT}", "labs": {"crea": 1.4}}
    assert found.basis == ({"reference": "Observation/o1", "display": "labs.crea"},)
    assert found.remarks == found.unusable == ()


@pytest.mark.parametrize(
    ("number", "unit", "code", "expected"),
    [
        (1.4, "mg/dL", "2160-0", 1.4),
        (14, "mg/L", "2160-0", 1.4),
        (0.014, "g/L", "2160-0", 1.4),
        (123.76, "umol/L", "2160-0", 1.4),  # 113.12 g/mol
        (123.76, "umol/L", "14682-9", 1.4),  # the code of creatinine by amount
        (0.12376, "mmol/L", "38483-4", 1.4),
    ],
)
def test_units_are_converted(number: float, unit: str, code: str, expected: float) -> None:
    """Within a dimension by UCUM, between mass and amount by molar mass."""
    assert value(crea(), observed(quantity(number, unit), code=code)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (quantity(1.4, "mmol"), "mmol cannot be converted to mg/dL"),
        (quantity(1.4, "mgdl"), "mgdl is no UCUM code"),
        (quantity(1.4, "meq/L"), "depends on the valence"),
        ({"valueQuantity": {"value": 1.4}}, "has no UCUM unit; expected mg/dL"),
        (quantity(1.4, system="http://local.example"), None),  # spelled like the feature's own unit
        ({"valueQuantity": {"value": 1.4, "unit": "mg/dL"}}, None),
        ({"valueQuantity": {"value": 1.4, "unit": "mg/dL", "system": "http://unitsofmeasure.org", "code": "g/dL"}}, None),
        (quantity("1.4"), "must be a number, found a string"),
        (quantity(True), "must be a number, found a boolean"),
        (quantity(math.inf), "finite"),
        (quantity(1.4, comparator="~"), "comparator"),
        ({"valueString": "1.4"}, "has no value of the kind"),
        ({"dataAbsentReason": {"text": "unknown"}}, "says that the value is absent"),
    ],
)
def test_what_cannot_be_read_surely_is_left_out_with_its_reason(element: dict[str, Any], reason: str | None) -> None:
    """Never guessed. The reason names the Observation and the unit, not the value."""
    if reason is None:
        assert value(crea(), observed(element)) is not None
        return
    told = complaint(crea(), observed(element))
    assert reason in told
    assert "Observation/o1 (labs.crea)" in told
    assert "1.4" not in told


def test_the_code_of_a_unit_counts_more_than_its_text() -> None:
    """A quantity whose text and UCUM code differ is read by its code."""
    odd = {"valueQuantity": {"value": 0.0014, "unit": "mg/dL", "system": "http://unitsofmeasure.org", "code": "g/dL"}}
    assert value(crea(), observed(odd)) == pytest.approx(1.4)


def test_equivalents_are_converted_by_the_valence_of_the_ion() -> None:
    """2 meq of calcium are 1 mmol; sodium's equivalents are its moles."""
    sodium = crea(name="sod", loinc=("2951-2",), unit="mmol/L")
    assert value(sodium, observed(quantity(140, "meq/L"), code="2951-2")) == 140
    calcium = crea(name="calcium", loinc=("2000-8",), unit="mmol/L")
    assert value(calcium, observed(quantity(4.8, "meq/L"), code="2000-8")) == pytest.approx(2.4)


def test_a_record_of_endless_units_does_not_hold_up_the_service() -> None:
    """Understanding a unit costs milliseconds, so a record has a hundred at most; what comes after is not used."""
    sent = [observed(quantity(2, f"mg/dL{{{i}}}"), hours=200 - i, id=f"n{i}") for i in range(150)]
    assert value(crea(summary="count"), *sent) == 100
    found = mapped(schema_of(crea()), *sent)
    assert "different units" in found.unusable[0]


def test_threads_share_one_table_of_units() -> None:
    """Two first conversions at once do not get in each other's way, in a process that has met no unit yet."""
    program = """
from concurrent.futures import ThreadPoolExecutor
from service.clinical.units import convert, prepare
with ThreadPoolExecutor(8) as pool:
    pool.submit(prepare)
    print(set(pool.map(lambda n: convert(1.0, "g/L", "mg/dL"), range(16))), convert(1.0, "kPa", "Pa"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "{100.0} 1000.0\n"


def test_a_feature_without_a_unit_takes_bare_numbers_alone() -> None:
    """A score may come as an integer or without a unit; a unit that nobody can compare is refused."""
    score = crea(unit=None)
    assert value(score, observed({"valueInteger": 3})) == 3
    assert value(score, observed({"valueQuantity": {"value": 3}})) == 3
    assert value(score, observed(quantity(3, "1"))) == 3
    assert "does not say in which unit" in complaint(score, observed(quantity(3, "mg/dL")))


@pytest.mark.parametrize(
    ("summary", "expected"), [("last", 3), ("first", 1), ("minimum", 1), ("maximum", 6), ("mean", 3.5), ("count", 4)]
)
def test_several_measurements_are_summarised(summary: Summary, expected: float) -> None:
    """In the order of their times, whatever order they were sent in."""
    sent = [observed(quantity(v), hours=h) for v, h in ((6, 3), (1, 4), (3, 1), (4, 2))]
    assert value(crea(summary=summary), *sent) == expected


def test_only_measurements_of_the_last_hours_count() -> None:
    """At the limit they do; those in the future never."""
    feature = crea(lookback_hours=24)
    assert value(feature, observed(quantity(2), hours=24)) == 2
    assert "before the last 24 hours" in complaint(feature, observed(quantity(2), hours=24.01))
    assert "lies in the future" in complaint(crea(), observed(quantity(2), hours=-0.01))
    assert value(crea(), observed(quantity(2), hours=1e5)) == 2


@pytest.mark.parametrize(
    ("times", "is_used"),
    [
        ({"effectiveDateTime": "2026-03-01T13:30:00+02:00"}, True),  # 11:30 in UTC
        ({"effectiveDateTime": "2026-03-01T09:30:00-03:00"}, False),  # 12:30 in UTC
        ({"effectiveDateTime": "2026-03-01T11:30:00"}, False),  # FHIR wants a zone here
        ({"effectiveDateTime": "2026-03-01"}, True),
        ({"effectiveDateTime": "2026-03-02"}, True),  # may have begun east of here
        ({"effectiveDateTime": "2026-03-03"}, False),
        ({"effectiveDateTime": "2025"}, True),
        ({"effectiveDateTime": "2026-13"}, False),
        ({"effectiveInstant": "2026-03-01T11:30:00.123Z"}, True),
        ({"effectivePeriod": {"start": "2026-02-01", "end": "2026-02-02T00:00:00Z"}}, True),
        ({"effectivePeriod": {"start": "2026-02-01"}}, True),
        ({"issued": "2026-03-01T11:30:00Z"}, True),
        ({"effectiveTiming": {}}, False),
        ({}, False),
    ],
)
def test_times_have_zones_and_come_from_any_element(times: dict[str, Any], is_used: bool) -> None:
    """Without a time that can be placed a measurement is not used."""
    sent = observed(quantity(2))
    del sent["effectiveDateTime"]
    assert (value(crea(), {**sent, **times}) is not None) is is_used


@pytest.mark.parametrize("status", ["preliminary", "registered", "cancelled", "entered-in-error", "unknown", 7, None])
def test_only_final_amended_and_corrected_observations_count(status: Any) -> None:
    """Others are named with their status."""
    assert "status" in complaint(crea(), observed(quantity(2), status=status))
    for good in ("final", "amended", "corrected"):
        assert value(crea(), observed(quantity(2), status=good)) == 2


def test_the_closest_code_wins_over_a_newer_one() -> None:
    """Codes are tried in the feature's order; a code whose values cannot be used gives way to the next."""
    blood = observed(quantity(9), hours=1, code="38483-4")
    assert value(crea(), blood, observed(quantity(2), hours=5)) == 2
    assert value(crea(), blood, observed(quantity(2, "furlong"), hours=5)) == 9


def test_a_limit_is_used_and_said() -> None:
    """`<0.2` is 0.2 with a remark."""
    found = mapped(schema_of(crea()), observed(quantity(0.2, comparator="<")))
    assert found.record["labs"] == {"crea": 0.2}
    assert found.remarks == ("labs.crea is known as below a limit, and the limit is used",)


def test_one_observation_under_two_keys_counts_once() -> None:
    """Searches for different codes may find the same panel."""
    sent = observed(quantity(2))
    bundle = {"resourceType": "Bundle", "entry": [{"resource": sent}]}
    assert value(crea(summary="count"), bundle, {"resourceType": "Bundle", "entry": [{"resource": dict(sent)}]}) == 1


@pytest.mark.parametrize(
    ("subject", "is_own"),
    [
        ({"reference": f"Patient/{PATIENT}"}, True),
        ({"reference": f"https://ehr.example/fhir/Patient/{PATIENT}/_history/3"}, True),
        ({"reference": "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"}, True),
        ({"reference": "urn:uuid:other"}, False),
        ({"reference": "Patient/p2"}, False),
        ({"reference": f"Group/{PATIENT}"}, False),
        (None, True),
    ],
)
def test_the_data_of_other_patients_are_never_mixed_in(subject: Any, is_own: bool) -> None:
    """What is about somebody else is left out and named; a bundle's own URL for the patient is the patient."""
    known = {"fullUrl": "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0", "resource": {"resourceType": "Patient", "id": PATIENT}}
    sent = observed(quantity(2), subject=subject)
    found = mapped(schema_of(crea()), {"resourceType": "Bundle", "entry": [known, {"resource": sent}]})
    assert found.is_empty is not is_own
    assert (found.unusable == ("Observation/o1 is about another patient",)) is not is_own


PANEL_CODE = {"coding": [{"system": "http://loinc.org", "code": "85354-9"}]}


def pressure(*parts: tuple[str, float], **changes: Any) -> dict[str, Any]:
    """A blood pressure panel."""
    components = [
        {"code": {"coding": [{"system": "http://loinc.org", "code": code}]}, **quantity(number, "mm[Hg]")}
        for code, number in parts
    ]
    return observed({"component": components}, code="85354-9", **changes)


MEAN = NumericFeature(name="meanbp", loinc=("8478-0",), unit="mm[Hg]", minimum=30, maximum=200)


def test_components_are_measurements() -> None:
    """A mean pressure in a panel, of the panel's time and status."""
    assert value(MEAN, pressure(("8478-0", 93))) == 93
    assert value(MEAN, pressure(("8478-0", 93), status="preliminary")) is None


def test_a_mean_pressure_is_computed_where_none_was_measured() -> None:
    """(systolic + 2 x diastolic) / 3 of one panel, said in a remark; a measured one is preferred."""
    found = mapped(schema_of(MEAN), pressure(("8480-6", 120), ("8462-4", 75)))
    assert found.record["labs"] == {"meanbp": 90}
    assert found.remarks == ("labs.meanbp is computed as (systolic + 2 x diastolic) / 3",)
    assert value(MEAN, pressure(("8480-6", 120), ("8462-4", 75)), observed(quantity(70, "mm[Hg]"), 9, "8478-0")) == 70
    assert value(MEAN, pressure(("8480-6", 120)), pressure(("8462-4", 75), hours=2)) is None
    half_known = pressure(("8480-6", 120), ("8462-4", 75))
    half_known["component"][1]["valueQuantity"]["comparator"] = "<"
    assert value(MEAN, half_known) is None


def test_the_newest_panel_gives_the_computed_pressure() -> None:
    """Ordered by time like any measurement."""
    newer, older = pressure(("8480-6", 120), ("8462-4", 75)), pressure(("8480-6", 90), ("8462-4", 60), hours=8)
    assert value(MEAN, newer, older) == value(MEAN, older, newer) == 90


def flag(*vocabulary: str) -> CategoricalFeature:
    """A category by LOINC code."""
    return CategoricalFeature(name="flag", loinc=("45676-4",), vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("element", "vocabulary", "expected"),
    [
        ({"valueCodeableConcept": {"text": "CHF"}}, ("chf", "copd"), "chf"),
        ({"valueCodeableConcept": {"coding": [{"code": "x"}, {"code": "y", "display": "Copd"}]}}, ("chf", "copd"), "copd"),
        ({"valueCodeableConcept": {"coding": [{"code": "LA33-6", "display": "Yes"}]}}, ("0", "1"), "1"),
        ({"valueCodeableConcept": {"text": "stroke"}}, ("chf", "copd"), None),
        ({"valueBoolean": True}, ("false", "true"), "true"),
        ({"valueBoolean": False}, ("0", "1"), "0"),
        ({"valueBoolean": True}, ("no", "yes"), "yes"),
        ({"valueBoolean": True}, ("1", "2", "3"), None),  # stages, not a yes or no
        ({"valueInteger": 2}, ("1", "2", "3"), "2"),
        ({"valueString": " COPD "}, ("chf", "copd"), "copd"),
        ({"valueCodeableConcept": 5}, ("chf",), None),
        ({}, ("chf",), None),
    ],
)
def test_categories_are_found_in_the_vocabulary(
    element: dict[str, Any], vocabulary: tuple[str, ...], expected: str | None
) -> None:
    """By code, display or text in any case; yes and no where the vocabulary is nothing else."""
    sent = observed(element, code="45676-4")
    assert value(flag(*vocabulary), sent) == expected
    if expected is None:
        assert "Observation/o1 (labs.flag)" in complaint(flag(*vocabulary), sent)


AGE = NumericFeature(name="age", loinc=("30525-0",), unit="a", minimum=18, maximum=100)
SEX = CategoricalFeature(name="sex", loinc=("46098-0",), vocabulary=("female", "male"))


@pytest.mark.parametrize(
    ("born", "years", "remark"),
    [
        ("1966-03-01", 60.0, None),
        ("1966-03", 60 - 14 / 365.25, "middle of the month"),
        ("1966", 59.66, "middle of the year"),
        ("2027-01-01", None, None),
        ("1966-02-30", None, None),
        ("1966-03-01T10:00:00Z", None, None),
        (1966, None, None),
    ],
)
def test_the_age_comes_from_the_date_of_birth(born: Any, years: float | None, remark: str | None) -> None:
    """In years; of a month or a year the middle, and that is said."""
    found = mapped(schema_of(AGE), {"resourceType": "Patient", "id": PATIENT, "birthDate": born})
    assert found.record.get("labs", {}).get("age") == (None if years is None else pytest.approx(years, abs=0.02))
    assert remark is None or remark in found.remarks[0]


def test_an_age_is_converted_or_refused() -> None:
    """Into months; not into what is no unit."""
    person = {"resourceType": "Patient", "id": PATIENT, "birthDate": "1966-03-01"}
    assert value(AGE.model_copy(update={"unit": "mo"}), person) == pytest.approx(720, abs=0.1)
    assert "which the feature's unit is not" in complaint(AGE.model_copy(update={"unit": "years"}), person)


@pytest.mark.parametrize(("gender", "expected"), [("male", "male"), ("FEMALE", "female"), ("other", None), ("", None), (3, None)])
def test_the_sex_comes_from_the_gender(gender: Any, expected: str | None) -> None:
    """Where no Observation says it, and in the vocabulary's spelling."""
    person = {"resourceType": "Patient", "id": PATIENT, "gender": gender}
    assert value(SEX, person) == expected
    short = CategoricalFeature(name="sex", loinc=("76689-9",), vocabulary=("F", "M"))
    assert value(short, person) == (None if expected is None else expected[0].upper())
    assert value(SEX, person, observed({"valueCodeableConcept": {"text": "female"}}, code="46098-0")) == "female"


CODES = CodesFeature(name="dx", grouping="icd", vocabulary=("icd10:I50", "charlson:heart_failure", "chapter:circulatory"))


def condition(code: str, system: str = "http://hl7.org/fhir/sid/icd-10-cm", **changes: Any) -> dict[str, Any]:
    """A Condition by code."""
    about = {"subject": {"reference": f"Patient/{PATIENT}"}}
    return {"resourceType": "Condition", "id": code, "code": {"coding": [{"system": system, "code": code}]}, **about, **changes}


def status(code: str) -> dict[str, Any]:
    """A CodeableConcept of a status."""
    return {"coding": [{"code": code}]}


def test_conditions_become_codes_with_their_edition() -> None:
    """Of every ICD system, each code once."""
    sent = [
        condition("I50.9"),
        condition("428.0", "http://hl7.org/fhir/sid/icd-9-cm"),
        condition("I50", "http://hl7.org/fhir/sid/icd-10"),
    ]
    assert value(CODES, *sent, condition("I50.9", id="again")) == ["icd10:I50.9", "icd9:428.0", "icd10:I50"]


@pytest.mark.parametrize("verification", ["entered-in-error", "refuted"])
def test_refuted_conditions_do_not_count(verification: str) -> None:
    """They are named."""
    sent = condition("I50.9", verificationStatus=status(verification))
    assert f"Condition/I50.9 has verificationStatus {verification}" in complaint(CODES, sent)


def test_past_conditions_count_and_are_said() -> None:
    """A history is a history."""
    found = mapped(schema_of(CODES), condition("I50.9", clinicalStatus=status("resolved")), condition("I10"))
    assert found.record["labs"]["dx"] == ["icd10:I50.9", "icd10:I10"]
    assert found.remarks == ("labs.dx counts 1 of 2 conditions that are inactive, in remission or resolved",)


def test_no_conditions_mean_none_only_where_all_were_sent() -> None:
    """Else nothing is known, which is another thing to the model."""
    assert value(CODES) is None
    assert value(CODES, conditions_known=True) == []
    snomed = condition("84114007", "http://snomed.info/sct")
    assert value(CODES, snomed, conditions_known=True) is None
    assert "does not count 1 conditions without" in complaint(CODES, snomed)


def test_procedures_are_not_taken_for_diagnoses() -> None:
    """39.61, a bypass in ICD-9-CM's procedures, would read as 396.1, a valve disease."""
    sent = {**condition("39.61", "http://hl7.org/fhir/sid/icd-9-cm"), "resourceType": "Procedure"}
    assert "Procedure resources are not read" in complaint(CODES, sent)


NOTE = TextFeature(name="note", loinc=("18842-5",), vocabulary=("pain",), idf=(1.0,))


def document(text: str | bytes, hours: float = 1, content_type: str = "text/plain", **changes: Any) -> dict[str, Any]:
    """A discharge summary with its text inside."""
    data = base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
    return {
        "resourceType": "DocumentReference",
        "id": f"d{hours:g}",
        "status": "current",
        "type": {"coding": [{"system": "http://loinc.org", "code": "18842-5"}]},
        "subject": {"reference": f"Patient/{PATIENT}"},
        "date": (NOW - timedelta(hours=hours)).isoformat(),
        "content": [{"attachment": {"contentType": content_type, "data": data}}],
        **changes,
    }


def test_the_newest_readable_document_is_the_text() -> None:
    """Of the feature's types; what cannot be read gives way to an older one and is named."""
    assert value(NOTE, document("old pain", hours=9), document("pain", hours=2), document("undated pain", date=None)) == "pain"
    found = mapped(schema_of(NOTE), document("pain", hours=9), document("<p>", hours=2, content_type="text/html"))
    assert found.record["labs"]["note"] == "pain"
    assert "DocumentReference/d2 (labs.note) has no inline attachment of type text/plain" in found.unusable[0]


@pytest.mark.parametrize(
    "sent",
    [
        document("pain", status="superseded"),
        document("pain", docStatus="entered-in-error"),
        document("pain", type={"coding": [{"system": "http://loinc.org", "code": "11506-3"}]}),
        document("pain", hours=-5),
        document(b"\xff", content_type="text/plain; charset=utf-8"),
        document("pain", content_type="text/plain; charset=utf-16"),
        document("pain", content=[{"attachment": {"contentType": "text/plain", "data": "?"}}]),
        document("pain", content=[{"attachment": {"contentType": "text/plain", "url": "http://169.254.169.254/"}}]),
        document("pain", content=[]),
    ],
)
def test_documents_that_must_not_or_cannot_be_read_are_not(sent: dict[str, Any]) -> None:
    """Superseded, of another type, in the future, not text, or behind a URL, which is never fetched."""
    assert value(NOTE, sent) is None


def test_latin_1_is_read() -> None:
    """As its content type says."""
    assert value(NOTE, document("né".encode("latin-1"), content_type="text/plain; charset=ISO-8859-1")) == "né"


def test_features_that_say_nothing_of_fhir_are_passed_over() -> None:
    """No LOINC code, no grouping, an array: they stay missing."""
    plain = [crea(loinc=()), CodesFeature(name="c", vocabulary=("I10",)), ArrayFeature(name="a", shape=(2,))]
    assert not any(map(is_mappable, plain))
    assert mapped(schema_of(*plain), observed(quantity(2))).is_empty


def test_other_observations_are_passed_over_without_a_word() -> None:
    """A panel holds much that a model does not know; other resources are named once."""
    found = mapped(
        schema_of(crea()), observed(quantity(2), code="1-8"), *[{"resourceType": "Encounter", "id": f"{i}"} for i in range(9)]
    )
    assert found.unusable == ("Encounter resources are not read by this service",)


EVERYTHING = schema_of(crea(lookback_hours=48), MEAN, flag("0", "1"), AGE, SEX, CODES, NOTE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SENT = [
    observed(quantity(2)),
    pressure(("8480-6", 120), ("8462-4", 75)),
    observed({"valueBoolean": True}, code="45676-4"),
    {"resourceType": "Patient", "id": PATIENT, "birthDate": "1966-03-01", "gender": "male"},
    condition("I50.9", clinicalStatus=status("active"), verificationStatus=status("confirmed")),
    document("pain"),
]


def paths(node: Any) -> list[tuple[Any, ...]]:
    """Every place of a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [(), *((key, *rest) for key, inner in items for rest in paths(inner))]


def replaced(node: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The document with something else in one place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(node, dict):
        return {**node, key: replaced(node[key], tuple(rest), new)}
    return [replaced(item, tuple(rest), new) if i == key else item for i, item in enumerate(node)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_whatsoever_makes_the_mapper_fail(data: st.DataObject) -> None:
    """Any JSON in any place of any resource: a record that the schema takes, or nothing."""
    resource = data.draw(st.sampled_from(SENT))
    path = data.draw(st.sampled_from(paths(resource)))
    sent = replaced(resource, path, data.draw(JSON))
    found = mapped(EVERYTHING, sent, {"resourceType": "Bundle", "entry": [{"resource": sent, "fullUrl": data.draw(JSON)}, sent]})
    if not found.is_empty:
        EVERYTHING.encode(found.record)


UNITS = {"mg/dL": 1.0, "g/L": 100.0, "umol/L": 113.12e-4, "ug/mL": 0.1}
MINUTES = st.integers(-6000, 6000)
MEASURED = st.tuples(st.floats(0.001, 1e4), MINUTES, st.sampled_from([*UNITS, "mmol", ""]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(MEASURED, max_size=8, unique_by=lambda one: one[1]),
    st.sampled_from(["last", "first", "minimum", "maximum", "mean", "count"]),
)
def test_a_summary_is_of_what_could_be_used(sent: list[tuple[float, int, str]], summary: Summary) -> None:
    """The number is the summary of what was in time and in a unit that can be converted; whatever else was sent is named."""
    resources = [observed(quantity(v, unit), hours=minutes / 60, id=f"n{i}") for i, (v, minutes, unit) in enumerate(sent)]
    good = sorted((-minutes, v * UNITS[unit]) for v, minutes, unit in sent if 0 <= minutes <= 48 * 60 and unit in UNITS)
    numbers = [number for _, number in good]
    by_hand = {
        "last": lambda: numbers[-1],
        "first": lambda: numbers[0],
        "minimum": lambda: min(numbers),
        "maximum": lambda: max(numbers),
        "mean": lambda: math.fsum(numbers) / len(numbers),
        "count": lambda: len(numbers),
    }
    found = mapped(schema_of(crea(summary=summary, lookback_hours=48)), *resources)
    assert found.is_empty is not bool(numbers)
    if numbers:
        assert found.record["labs"]["crea"] == pytest.approx(by_hand[summary](), rel=1e-6)
    unusable = " ".join(found.unusable)
    for i, (_, minutes, unit) in enumerate(sent):
        if minutes < 0 or (minutes <= 48 * 60 and unit not in UNITS):
            assert f"Observation/n{i} (labs.crea)" in unusable
