"""Notes: which belong to a row, which sections stay, and what is blanked."""

from pathlib import Path
from typing import Any

import pytest

from service.bundle.text import tokenize
from tests.training.data.mimic_iv.hospital import Hospital, small_hospital
from training.data.built import BuiltData
from training.data.mimic_iv import MimicOptions, read
from training.data.mimic_iv.notes import SECTIONS, kept_text, sections
from training.errors import DataError

SUMMARY = """ \nName:  ___                     Unit No:   ___\n \nService: MEDICINE\n \nChief Complaint:\nDyspnea\n
Brief Hospital Course:\n___ year old man with CHF.\nTransitional issues: none\n
Discharge Disposition:\nHome With Service\n \nFacility:\n___ Hospice\n
Discharge Condition:\nMental Status: Clear and coherent.\nLevel of Consciousness: Alert.\n
Discharge Instructions:\nDear Mr. ___,\n"""


def hospital() -> Hospital:
    return small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5)


def note(made: Hospital, table: str, hadm: int | None, at: str, text: str, **more: Any) -> Hospital:
    """A note on patient 1."""
    return made.add(table, subject_id=1, hadm_id=hadm, charttime=at, text=text, **more)


def built(made: Hospital, root: Path, **options: Any) -> BuiltData:
    return read(made.write(root), MimicOptions(**options), ["one_year_mortality"])


def test_sections_begin_at_their_headings() -> None:
    """Text on the heading's line belongs to it; words with a colon within a section do not begin another."""
    found = dict(sections(SUMMARY, SECTIONS))
    assert found["Service"] == "MEDICINE"
    assert found["Discharge Condition"].splitlines() == ["Mental Status: Clear and coherent.", "Level of Consciousness: Alert."]
    assert found[""].startswith("Name:")
    assert "CHF" in found["Brief Hospital Course"]
    assert found["Transitional issues"] == "none"


def test_a_text_without_headings_is_one_section() -> None:
    """Nothing is lost where nothing is recognised."""
    assert sections("no heading: here", ("Service",)) == [("", "no heading: here")]


def test_the_sections_that_say_how_the_patient_left_are_dropped_by_default(tmp_path: Path) -> None:
    """Condition, disposition and facility; the rest stays."""
    data = built(note(hospital(), "discharge", 12, "2151-03-05 00:00:00", SUMMARY), tmp_path, notes=("discharge",))
    words = set(tokenize(data.frame["note_discharge"][0]))
    assert {"dyspnea", "chf", "dear"} <= words
    assert words.isdisjoint({"hospice", "coherent", "alert", "disposition"})
    assert any("leaks the prognosis" in told for told in data.notes)


@pytest.mark.parametrize(
    ("keep", "drop", "expected"),
    [
        (["chief complaint"], [], "Chief Complaint: Dyspnea"),
        (["Chief Complaint", "Service"], ["Service"], "Chief Complaint: Dyspnea"),
        (["Mental Status"], [], "Mental Status: Clear and coherent.\nLevel of Consciousness: Alert."),
    ],
)
def test_sections_may_be_named(keep: list[str], drop: list[str], expected: str) -> None:
    """In any case of letters; dropping wins; a heading of one's own is one because it is named."""
    assert kept_text(SUMMARY, keep=keep, drop=drop) == expected


def test_blanked_marks_are_no_words() -> None:
    """The marks are gone from the text and make no word of the vocabulary."""
    text = kept_text("Seen by Dr. ___ at _____, M.D.", keep=[], drop=[])
    assert "_" not in text
    assert tokenize(text) == ["seen", "by", "dr", "at"]


@pytest.mark.parametrize(
    ("at", "more", "counts"),
    [
        ("2151-03-01 03:00:00", {}, True),  # in the emergency department
        ("2151-03-05 12:00:00", {}, True),
        ("2151-03-05 13:00:00", {}, False),
        ("2151-03-05 11:00:00", {"storetime": "2151-03-05 14:00:00"}, False),
        ("2151-02-01 03:00:00", {}, False),
    ],
)
def test_reports_count_from_arrival_to_the_prediction(tmp_path: Path, at: str, more: dict[str, Any], counts: bool) -> None:
    """Whether they name an admission or not, and only when they could be read by then."""
    data = built(note(hospital(), "radiology", None, at, "FINDINGS: effusion", **more), tmp_path, notes=("radiology",))
    assert data.frame["note_radiology"].to_list() == ["FINDINGS: effusion" if counts else None, None]


def test_reports_are_joined_in_time_and_cut_at_the_front(tmp_path: Path) -> None:
    """The latest words stay."""
    made = note(hospital(), "radiology", 12, "2151-03-03 03:00:00", "second")
    data = built(note(made, "radiology", 12, "2151-03-02 03:00:00", "first"), tmp_path, notes=("radiology",), note_characters=9)
    assert data.frame["note_radiology"][0] == "st\nsecond"


def test_summaries_of_earlier_admissions_are_known(tmp_path: Path) -> None:
    """prior_discharge takes those and not the index admission's, so no warning is due."""
    made = note(hospital(), "discharge", 11, "2150-01-15 00:00:00", "Chief Complaint: old")
    made = note(made, "discharge", 12, "2151-03-05 00:00:00", "Chief Complaint: new")
    data = built(made, tmp_path, notes=("prior_discharge",))
    assert data.frame["note_prior_discharge"].to_list() == ["Chief Complaint: old", None]
    assert data.facts["note_prior_discharge"].loinc == ("18842-5",)
    assert not any("leaks" in told for told in data.notes)


def test_notes_need_their_table(tmp_path: Path) -> None:
    """MIMIC-IV-Note is a download of its own."""
    with pytest.raises(DataError, match=r"note: expected radiology.csv.gz, .* found no such folder"):
        built(hospital(), tmp_path, notes=("radiology",))
