"""Who is in the cohort, with which label, and that everybody else is accounted for."""

from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.mimic_iv.hospital import Hospital, small_hospital
from training.data.mimic_iv import FlowStep, MimicOptions, cohort_flow
from training.data.mimic_iv.cohort import Cohort, cohort_warnings, select_cohort
from training.data.mimic_iv.options import LABELS, checked_label
from training.data.mimic_iv.tables import Tables
from training.errors import DataError

YEAR, MONTH, HERE = LABELS


def cohort(hospital: Hospital, root: Path, label: str = YEAR, **options: Any) -> Cohort:
    return select_cohort(Tables(hospital.write(root)), MimicOptions(**options), label)


def one_stay(dod: str | None, **more: Any) -> Hospital:
    """A patient discharged on 15 January 2150 at noon."""
    return Hospital().patient(1, dod=dod).stay(1, 11, "2150-01-10 08:00:00", "2150-01-15 12:00:00", **more)


def test_the_flow_says_who_was_left_out_and_why(tmp_path: Path) -> None:
    """Each step with its reason, the admissions left out and those left; they add up to the rows."""
    root = small_hospital().patient(4, age=17).stay(4, 41, "2150-02-01 08:00:00", "2150-02-02 08:00:00").write(tmp_path)
    num_admissions, flow = cohort_flow(root, MimicOptions(), YEAR)
    assert num_admissions == 5
    assert [step for step in flow if step.num_excluded] == [
        FlowStep("younger than 18", 1, 4),
        FlowStep("died in hospital or on the day of discharge", 1, 3),
        FlowStep("not the patient's last admission", 1, 2),
    ]


@pytest.mark.parametrize(("index", "hadm_ids"), [("last", [12, 31]), ("first", [11, 31]), ("all", [11, 12, 31])])
def test_the_index_admission_is_chosen(tmp_path: Path, index: str, hadm_ids: list[int]) -> None:
    """The last, the first or every admission of those that may be rows."""
    assert cohort(small_hospital(), tmp_path, index=index).stays["hadm_id"].to_list() == hadm_ids


def test_the_last_admission_is_the_last_that_ended_alive(tmp_path: Path) -> None:
    """Who dies at a later admission has the one before as index, and has the event."""
    hospital = one_stay("2150-03-09").stay(1, 12, "2150-03-01 08:00:00", "2150-03-09 08:00:00", hospital_expire_flag=1)
    stays = cohort(hospital, tmp_path).stays
    assert stays.select("hadm_id", "label").rows() == [(11, 1)]


@pytest.mark.parametrize(
    ("dod", "label", "event"),
    [
        ("2150-01-16", YEAR, 1), ("2151-01-15", YEAR, 1), ("2151-01-16", YEAR, 0), (None, YEAR, 0),
        ("2150-02-14", MONTH, 1), ("2150-02-15", MONTH, 0),
    ],
)  # fmt: skip
def test_days_are_counted_between_dates(tmp_path: Path, dod: str | None, label: str, event: int) -> None:
    """Discharge at noon, death without a time of day: day 365 (30) counts, the next does not."""
    assert cohort(one_stay(dod), tmp_path, label).stays["label"].to_list() == [event]


@pytest.mark.parametrize("more", [{"hospital_expire_flag": 1}, {"deathtime": "2150-01-15 11:00:00"}, {}])
def test_a_death_by_the_day_of_discharge_is_one_in_hospital(tmp_path: Path, more: dict[str, Any]) -> None:
    """Told by the flag, by a time of death, or by the date alone: no row where death after discharge is predicted."""
    hospital = one_stay("2150-01-15", **more)
    with pytest.raises(DataError, match="no admission of 1 is left: 1 died in hospital or on the day of discharge"):
        cohort(hospital, tmp_path)
    assert cohort(hospital, tmp_path, HERE, predict_at=24.0).stays["label"].to_list() == [1]


def test_age_is_that_at_admission(tmp_path: Path) -> None:
    """The anchor's age moves with the years between the anchor and the admission; 17 becomes 18."""
    hospital = Hospital().patient(1, age=17, year=2150).stay(1, 11, "2151-01-10 08:00:00", "2151-01-15 12:00:00")
    assert cohort(hospital, tmp_path).stays["age"].to_list() == [18]


def test_who_left_before_the_prediction_is_no_row(tmp_path: Path) -> None:
    """Predicting 48 h after admission: discharge at exactly 48 h is too early, death before it as well."""
    early_death = {"deathtime": "2150-05-02 08:00:00", "hospital_expire_flag": 1}
    hospital = (
        small_hospital().patient(5, dod="2150-05-02").stay(5, 51, "2150-05-01 08:00:00", "2150-05-09 20:00:00", **early_death)
    )
    found = cohort(hospital, tmp_path, HERE, predict_at=48.0)
    assert found.stays.select("hadm_id", "label").rows() == [(12, 0), (21, 1)]
    assert FlowStep("left or died within 48 h of admission", 2, 3) in found.flow


def test_patients_with_one_admission_may_be_left_out(tmp_path: Path) -> None:
    """The paper's rule: more than one visit."""
    assert cohort(small_hospital(), tmp_path, min_admissions=2).stays["hadm_id"].to_list() == [12]


def test_admissions_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    """A discharge before the admission or none at all, and a patient who is in no table."""
    hospital = (
        small_hospital()
        .stay(3, 32, "2161-06-03 08:00:00", "2161-06-01 08:00:00")
        .stay(9, 91, "2150-01-01 08:00:00", "2150-01-02 08:00:00")
    )
    hospital.tables["admissions"][0]["dischtime"] = None
    found = cohort(hospital, tmp_path, index="all")
    assert found.stays["hadm_id"].to_list() == [12, 31]
    assert [(step.reason, step.num_excluded) for step in found.flow[:2]] == [
        ("the patient is not in the table patients", 1),
        ("no discharge after the admission", 2),
    ]


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    """Two admissions of one number would double its rows."""
    with pytest.raises(DataError, match="expected every hadm_id once, found 1 of 5 rows repeating one"):
        cohort(small_hospital().stay(3, 31, "2161-06-01 08:00:00", "2161-06-03 08:00:00"), tmp_path)


@pytest.mark.parametrize(
    ("label", "options", "told"),
    [
        ("death", {}, r"data.label: expected one of one_year_mortality, .*, found death"),
        (HERE, {}, "expected options.predict_at in hours after admission, found discharge"),
        (HERE, {"predict_at": 24.0, "codes_from": "index"}, "codes_from: found index, expected prior"),
        (YEAR, {"predict_at": 24.0, "codes_from": "prior_and_index"}, "codes_from: found prior_and_index, expected prior"),
        (HERE, {"predict_at": 24.0, "notes": ("discharge",)}, "notes: found discharge, expected radiology or prior_discharge"),
        (YEAR, {"lab_summaries": ("last", "last")}, "lab_summaries: expected each once, found last, last"),
    ],
)
def test_what_would_leak_is_refused(label: str, options: dict[str, Any], told: str) -> None:
    """Labels that do not exist, and features written after the prediction."""
    with pytest.raises(DataError, match=told):
        checked_label(MimicOptions(**options), (label,))


@pytest.mark.parametrize(
    ("label", "options", "codes"),
    [(YEAR, {}, "prior_and_index"), (YEAR, {"predict_at": 24.0}, "prior"), (HERE, {"predict_at": 24.0}, "prior"),
     (YEAR, {"codes_from": "prior"}, "prior")],
)  # fmt: skip
def test_codes_of_the_index_admission_are_the_default_only_at_discharge(label: str, options: dict[str, Any], codes: str) -> None:
    """Where they would leak, earlier admissions' codes alone are used."""
    assert MimicOptions(**options).codes(label) == codes


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "known to be the last only afterwards"), ({"index": "all"}, "several rows of one patient"),
     ({"index": "first", "min_admissions": 2}, "survived the earlier ones"), ({"predict_at": 24.0}, "discharged alive")],
)  # fmt: skip
def test_the_report_says_what_a_cohort_rule_brings_with_it(options: dict[str, Any], told: str) -> None:
    """Selections that use what comes later are told."""
    assert any(told in warning for warning in cohort_warnings(MimicOptions(**options), YEAR))


@st.composite
def hospitals(draw: st.DrawFn) -> Hospital:
    """Up to four patients with up to four admissions each, some impossible, some ending in death."""
    hospital, hadm = Hospital(), 100
    for subject in range(1, draw(st.integers(1, 4)) + 1):
        hospital.patient(subject, age=draw(st.integers(15, 20)), dod=draw(st.sampled_from([None, "2150-06-01", "2151-03-02"])))
        for _ in range(draw(st.integers(1, 4))):
            admitted = datetime(2150, 1, 1) + timedelta(days=draw(st.integers(0, 400)))
            left = admitted + timedelta(hours=draw(st.integers(-5, 300)))
            hospital.stay(subject, hadm, str(admitted), str(left), hospital_expire_flag=draw(st.integers(0, 1)))
            hadm += 1
    return hospital


@settings(max_examples=60, deadline=None)
@given(
    hospital=hospitals(),
    index=st.sampled_from(["last", "first", "all"]),
    least=st.integers(1, 2),
    case=st.sampled_from([(YEAR, "discharge"), (MONTH, 24.0), (HERE, 12.0)]),
)
def test_the_flow_adds_up(hospital: Hospital, index: str, least: int, case: tuple[str, Any]) -> None:
    """Whatever the tables and rules: every admission is a row or was left out once, and no rule is broken by a row."""
    label, predict_at = case
    with TemporaryDirectory() as folder:
        try:
            found = cohort(hospital, Path(folder), label, index=index, min_admissions=least, predict_at=predict_at)
        except DataError:  # nobody is left
            return
    left = found.num_admissions
    for step in found.flow:
        left -= step.num_excluded
        assert step.num_left == left
    stays = found.stays
    assert stays.height == left
    assert (stays["predicted"] <= stays["dischtime"]).all()
    assert (stays["age"] >= 18).all()
    if index != "all":
        assert stays["subject_id"].is_unique().all()
    if label != HERE:
        assert (stays["dod"].is_null() | (stays["dod"] > stays["dischtime"].dt.date())).all()
