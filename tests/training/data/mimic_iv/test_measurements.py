"""Laboratory results and vital signs: which count, in which unit, and what becomes of several."""

from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.mimic_iv.hospital import Hospital
from training.data.built import BuiltData
from training.data.mimic_iv import MimicOptions, read
from training.data.modalities import ColumnFacts
from training.errors import DataError

CREATININE, MCHC, TROPONIN, UNKNOWN = 50912, 51249, 51003, 53001


def hospital() -> Hospital:
    """One patient, in hospital from 10 January 8 h (emergency department 3 h) to 15 January 12 h, and once a year before."""
    return (
        Hospital()
        .patient(1)
        .stay(1, 10, "2149-01-10 08:00:00", "2149-01-11 12:00:00")
        .stay(1, 11, "2150-01-10 08:00:00", "2150-01-15 12:00:00", edregtime="2150-01-10 03:00:00")
    )


def built(made: Hospital, root: Path, label: str = "one_year_mortality", **options: Any) -> BuiltData:
    return read(made.write(root), MimicOptions(**options), [label])


def value(made: Hospital, root: Path, column: str = "lab_creatinine", **options: Any) -> Any:
    """The one cell of a column."""
    (cell,) = built(made, root, **options).frame[column]
    return cell


@pytest.mark.parametrize(
    ("hadm", "at", "more", "counts"),
    [
        (11, "2150-01-12 07:00:00", {}, True),
        (None, "2150-01-12 07:00:00", {}, True),  # by subject and time
        (None, "2150-01-10 04:00:00", {}, True),  # in the emergency department
        (None, "2150-01-10 02:00:00", {}, False),  # before arrival
        (11, "2150-01-15 12:00:00", {}, True),  # at discharge
        (11, "2150-01-15 13:00:00", {}, False),  # after it
        (10, "2150-01-12 07:00:00", {}, False),  # of another admission
        (11, "2150-01-15 11:00:00", {"storetime": "2150-01-15 14:00:00"}, False),  # not known yet
        (11, "2150-01-15 11:00:00", {"storetime": "2150-01-15 11:30:00"}, True),
    ],
)
def test_what_was_known_in_the_stay_counts(tmp_path: Path, hadm: int | None, at: str, more: dict[str, Any], counts: bool) -> None:
    """From arrival to the prediction, of this admission or of none, and reported by then."""
    made = hospital().lab(1, 11, "2150-01-10 09:00:00", 1.0).lab(1, hadm, at, 2.0, **more)
    found = value(made, tmp_path, "lab_creatinine_maximum", lab_summaries=("maximum",))
    assert found == (2.0 if counts else 1.0)


@pytest.mark.parametrize(
    ("hadm", "at", "counts"),
    [(11, "2150-01-14 13:00:00", True), (11, "2150-01-14 11:00:00", False), (None, "2150-01-14 12:00:00", True),
     (10, "2150-01-14 13:00:00", True)],
)  # fmt: skip
def test_a_window_counts_hours_before_the_prediction(tmp_path: Path, hadm: int | None, at: str, counts: bool) -> None:
    """Of 24 h before discharge everything counts, whatever the admission; as a hospital system would be asked."""
    made = hospital().lab(1, 11, "2150-01-15 11:00:00", 1.0).lab(1, hadm, at, 2.0)
    found = built(made, tmp_path, lab_summaries=("maximum",), labs_window_hours=24.0)
    assert found.frame["lab_creatinine_maximum"].to_list() == [2.0 if counts else 1.0]
    assert found.facts["lab_creatinine_maximum"].lookback_hours == 24.0


def test_a_prediction_during_the_stay_sees_nothing_later(tmp_path: Path) -> None:
    """24 h after admission the third day's result is not known."""
    made = hospital().lab(1, 11, "2150-01-11 07:00:00", 1.0).lab(1, 11, "2150-01-12 07:00:00", 9.0)
    assert value(made, tmp_path, label="in_hospital_mortality", predict_at=24.0) == 1.0


def test_summaries_are_columns_of_their_own(tmp_path: Path) -> None:
    """Last has the plain name, the others say what they are; each with its LOINC code, unit and summary."""
    made = hospital()
    for hour, number in ((9, 3.0), (7, 1.0), (8, 2.0)):
        made.lab(1, 11, f"2150-01-12 0{hour}:00:00", number)
    found = built(made, tmp_path, lab_summaries=("last", "first", "minimum", "maximum", "mean", "count"))
    expected = {"": 3.0, "_first": 1.0, "_minimum": 1.0, "_maximum": 3.0, "_mean": 2.0, "_count": 3.0}
    for ending, number in expected.items():
        assert found.frame[f"lab_creatinine{ending}"].to_list() == [number]
    known = ColumnFacts(loinc=("2160-0", "38483-4"), unit="mg/dL", summary="last")
    assert found.facts["lab_creatinine"] == known
    assert (found.facts["lab_creatinine_count"].unit, found.facts["lab_creatinine_count"].summary) == (None, "count")


def test_of_two_at_one_time_the_mean_is_the_last(tmp_path: Path) -> None:
    """Two results of one minute are one value, whichever stands first in the file."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0).lab(1, 11, "2150-01-12 07:00:00", 2.0)
    assert value(made, tmp_path) == 1.5


def test_a_stay_without_any_has_none(tmp_path: Path) -> None:
    """Null where nothing was measured, and no measurements are counted as 0."""
    made = hospital().patient(2).stay(2, 21, "2150-01-01 08:00:00", "2150-01-02 08:00:00").lab(1, 11, "2150-01-12 07:00:00", 1.0)
    frame = built(made, tmp_path, lab_summaries=("last", "count")).frame
    assert frame["lab_creatinine"].to_list() == [1.0, None]
    assert frame["lab_creatinine_count"].to_list() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("item", "unit", "number", "column", "expected"),
    [
        (CREATININE, "umol/L", 88.4, "lab_creatinine", pytest.approx(1.0, abs=1e-3)),
        (CREATININE, None, 1.0, "lab_creatinine", 1.0),
        (CREATININE, " mg/dL ", 1.0, "lab_creatinine", 1.0),
        (MCHC, "%", 33.0, "lab_mchc", 33.0),
    ],
)
def test_units_that_are_known_are_converted(
    tmp_path: Path, *, item: int, unit: str | None, number: float, column: str, expected: float
) -> None:
    """A value in another unit of the same quantity becomes one of the quantity's own; without a unit it is in that."""
    assert value(hospital().lab(1, 11, "2150-01-12 07:00:00", number, itemid=item, valueuom=unit), tmp_path, column) == expected


def test_units_that_are_not_known_are_dropped_and_counted(tmp_path: Path) -> None:
    """A value nobody can convert is no value, and the report says so."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0).lab(1, 11, "2150-01-13 07:00:00", 80.0, valueuom="furlong")
    found = built(made, tmp_path)
    assert found.frame["lab_creatinine"].to_list() == [1.0]
    assert "lab_creatinine: 1 values in furlong dropped; its unit is mg/dL" in found.notes


def test_an_unknown_items_commonest_unit_is_its_unit(tmp_path: Path) -> None:
    """Its name says its label, fluid and number; a unit of its minority is dropped."""
    made = hospital()
    for day, unit in ((11, "ng/mL"), (12, "ng/mL"), (13, "mg/dL")):
        made.lab(1, 11, f"2150-01-{day} 07:00:00", float(day), itemid=UNKNOWN, valueuom=unit)
    found = built(made, tmp_path)
    name = "lab_some_factor_free_pleural_53001"
    assert found.frame[name].to_list() == [12.0]
    assert found.facts[name] == ColumnFacts(unit="ng/mL", summary="last")


def test_impossible_values_are_dropped_and_counted(tmp_path: Path) -> None:
    """A creatinine of 999 is a clerk's error; a column that has no other value does not exist."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0).lab(1, 11, "2150-01-13 07:00:00", 999.0)
    made.lab(1, 11, "2150-01-13 07:00:00", -4.0, itemid=TROPONIN, valueuom="ng/mL")
    found = built(made, tmp_path)
    assert found.frame["lab_creatinine"].to_list() == [1.0]
    assert "lab_troponin_t" not in found.frame.columns
    assert "lab: 2 values dropped outside physiological limits (creatinine 1, troponin_t 1)" in found.notes
    assert "lab_troponin_t: no column, since no value is left" in found.notes


def test_what_has_no_number_or_no_time_is_no_measurement(tmp_path: Path) -> None:
    """Text results do not count; results whose time cannot be read are told."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0).lab(1, 11, "2150-01-13 07:00:00", None).lab(1, 11, "no time", 3.0)
    found = built(made, tmp_path)
    assert found.frame["lab_creatinine"].to_list() == [1.0]
    assert "lab: 1 measurements in the windows, 0 of them without hadm_id and placed by subject and time" in found.notes
    assert "lab: 1 measurements dropped: their time cannot be read" in found.notes


def test_the_commonest_items_are_those_of_most_stays(tmp_path: Path) -> None:
    """Counted are stays, not results: one stay with three results does not outdo two stays with one."""
    made = hospital().patient(2).stay(2, 21, "2150-01-01 08:00:00", "2150-01-02 08:00:00")
    made.lab(2, 21, "2150-01-01 09:00:00", 33.0, itemid=MCHC, valueuom="g/dL").lab(
        1, 11, "2150-01-12 07:00:00", 33.0, itemid=MCHC, valueuom="g/dL"
    )
    for hour in (1, 2, 3):
        made.lab(1, 11, f"2150-01-12 0{hour}:00:00", 1.0)
    assert [c for c in built(made, tmp_path, lab_items=1).frame.columns if c.startswith("lab_")] == ["lab_mchc"]


def test_items_may_be_named(tmp_path: Path) -> None:
    """In the order of the recipe; one that nobody had is told."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0).lab(1, 11, "2150-01-12 07:00:00", 33.0, itemid=MCHC, valueuom="g/dL")
    found = built(made, tmp_path / "a", lab_items=(MCHC, CREATININE))
    assert [c for c in found.frame.columns if c.startswith("lab_")] == ["lab_mchc", "lab_creatinine"]
    with pytest.raises(DataError, match="lab_items: no number of itemid 51003 in the window of any stay"):
        built(made, tmp_path / "b", lab_items=(TROPONIN,))


def test_no_result_at_all_is_told(tmp_path: Path) -> None:
    """A table whose results are all of other times cannot be meant."""
    with pytest.raises(DataError, match="holds no number in the window of any of 1 stays"):
        built(hospital().lab(1, 11, "2151-01-12 07:00:00", 1.0), tmp_path)


def test_a_loinc_code_in_the_table_comes_first(tmp_path: Path) -> None:
    """MIMIC-IV 1.0 says it in d_labitems; shipped codes stay beside it."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0)
    made.extra_columns["d_labitems"] = ["loinc_code"]
    made.tables["d_labitems"][0]["loinc_code"] = "14682-9"
    assert built(made, tmp_path).facts["lab_creatinine"].loinc == ("14682-9", "2160-0", "38483-4")


def chart(made: Hospital, item: int, number: float, unit: str | None, at: str = "2150-01-12 07:00:00") -> Hospital:
    told = {"itemid": item, "charttime": at, "valuenum": number, "valueuom": unit}
    return made.lab(1, 11, at, 1.0).add("chartevents", subject_id=1, hadm_id=11, **told)


@pytest.mark.parametrize(
    ("item", "number", "unit", "column", "expected"),
    [
        (220045, 80.0, "bpm", "vital_heart_rate", 80.0),
        (223761, 98.6, "\N{DEGREE SIGN}F", "vital_temperature", pytest.approx(37.0)),
        (223762, 37.5, "\N{DEGREE SIGN}C", "vital_temperature", 37.5),
        (220179, 120.0, "mmHg", "vital_systolic_pressure", 120.0),
        (220739, 4.0, None, "vital_gcs_eyes", 4.0),
    ],
)
def test_vital_signs_have_one_column_each(
    tmp_path: Path, *, item: int, number: float, unit: str | None, column: str, expected: float
) -> None:
    """Several charted items are one quantity; Fahrenheit becomes Celsius."""
    found = built(chart(hospital(), item, number, unit), tmp_path, vitals=True)
    assert found.frame[column].to_list() == [expected]
    assert found.facts[column].loinc
    assert f"{column}_maximum" in found.frame.columns


def test_cuff_and_artery_are_one_pressure(tmp_path: Path) -> None:
    """The last of both."""
    made = chart(chart(hospital(), 220179, 120.0, "mmHg"), 220050, 90.0, "mmHg", at="2150-01-12 08:00:00")
    assert value(made, tmp_path, "vital_systolic_pressure", vitals=True) == 90.0


def test_vital_signs_need_their_table(tmp_path: Path) -> None:
    """Asked for without icu/, they are told; not asked for, they are not missed."""
    made = hospital().lab(1, 11, "2150-01-12 07:00:00", 1.0)
    assert not [c for c in built(made, tmp_path / "a").frame.columns if c.startswith("vital")]
    with pytest.raises(DataError, match=r"icu: expected chartevents\.csv\.gz"):
        built(made, tmp_path / "b", vitals=True)


START = datetime(2150, 1, 10)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([10, 11, None]),
        st.integers(-48, 150).map(lambda hours: START + timedelta(hours=hours)),
        st.sampled_from([0.5, 1.0, 2.5, 999.0]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(events=EVENTS, window=st.sampled_from([None, 24.0, 1000.0]))
def test_summaries_are_those_of_plain_python(events: list[tuple[int | None, datetime, float]], window: float | None) -> None:
    """For any results, the columns are what a loop over them finds."""
    made = hospital()
    for hadm, at, number in events:
        made.lab(1, hadm, str(at), number)
    begins, ends = datetime(2150, 1, 10, 3), datetime(2150, 1, 15, 12)
    if window is not None:
        begins = ends - timedelta(hours=window)
    inside = [(at, x) for hadm, at, x in events if begins <= at <= ends and (window is not None or hadm in {None, 11})]
    kept = [(at, x) for at, x in inside if x < 60]
    options = {"lab_summaries": ("last", "minimum", "count"), "labs_window_hours": window}
    with TemporaryDirectory() as folder:
        if not inside:
            with pytest.raises(DataError, match="holds no number"):
                built(made, Path(folder), **options)
            return
        frame = built(made, Path(folder), **options).frame
    if not kept:
        assert "lab_creatinine" not in frame.columns
        return
    last = np.mean([x for at, x in kept if at == max(at for at, _ in kept)])
    found = frame.select(pl.col("^lab_creatinine.*$")).row(0)
    assert found == (pytest.approx(last), min(x for _, x in kept), len(kept))
