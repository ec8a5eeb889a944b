"""Codes: of which admissions, of which edition, and what is no code."""

from pathlib import Path

import pytest

from service.bundle.icd import icd_groups
from tests.training.data.mimic_iv.hospital import Hospital, small_hospital
from training.data.built import BuiltData
from training.data.mimic_iv import MimicOptions, read
from training.errors import DataError


def hospital() -> Hospital:
    """Patient 1 has heart failure in the admission of 2150 and hypertension in that of 2151."""
    made = small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5)
    return made.diagnosis(1, 11, "4280", 9).diagnosis(1, 12, "I10").diagnosis(1, 12, "I10").diagnosis(1, 12, "E119")


def built(made: Hospital, root: Path, codes_from: str | None = None) -> BuiltData:
    options = {} if codes_from is None else {"codes_from": codes_from}
    return read(made.write(root), MimicOptions.model_validate(options), ["one_year_mortality"])


@pytest.mark.parametrize(
    ("codes_from", "codes"),
    [("prior", "icd9:4280"), ("index", "icd10:E119|icd10:I10"), ("prior_and_index", "icd10:E119|icd10:I10|icd9:4280"),
     (None, "icd10:E119|icd10:I10|icd9:4280")],
)  # fmt: skip
def test_codes_are_those_of_the_admissions_asked_for(tmp_path: Path, codes_from: str | None, codes: str) -> None:
    """Each once, with its edition; a patient without any has none. Index codes come with a warning."""
    data = built(hospital(), tmp_path, codes_from)
    assert data.frame["diagnoses"].to_list() == [codes, None]
    warned = any("written after discharge" in note for note in data.notes)
    assert warned == (codes_from != "prior")


def test_an_admission_that_overlaps_is_not_a_prior_one(tmp_path: Path) -> None:
    """Prior is what had ended when the index admission began: a transfer's codes of the same hours do not count."""
    made = hospital().stay(1, 13, "2151-03-01 07:00:00", "2151-03-02 08:00:00").diagnosis(1, 13, "Z515")
    assert built(made, tmp_path, "prior").frame["diagnoses"].to_list() == ["icd9:4280", None]


@pytest.mark.parametrize(
    ("code", "edition", "expected"), [("0389", 9, "icd9:0389"), ("I509   ", 10, "icd10:I509"), ("v1582", 9, "icd9:V1582")]
)
def test_codes_are_text(tmp_path: Path, code: str, edition: int, expected: str) -> None:
    """Leading zeros stay, padding goes, letters are large; and what comes out can be grouped."""
    found = built(hospital().diagnosis(3, 31, code, edition), tmp_path).frame["diagnoses"][1]
    assert found == expected
    assert icd_groups(found)


def test_what_is_no_code_is_dropped_and_counted(tmp_path: Path) -> None:
    """`NoDx` and the like would stop a training that groups codes."""
    data = built(hospital().diagnosis(3, 31, "NoDx").diagnosis(3, 31, "J449"), tmp_path)
    assert data.frame["diagnoses"][1] == "icd10:J449"
    assert "1 of 6 diagnosis codes dropped: no code of their edition" in data.notes


def test_procedures_cannot_be_taken_for_diagnoses(tmp_path: Path) -> None:
    """39.61 is a bypass, 396.1 a valve: procedures say another classification, and grouping refuses them."""
    made = hospital().diagnosis(3, 31, "3961", 9, "procedures_icd").diagnosis(3, 31, "02703DZ", 10, "procedures_icd")
    codes = built(made, tmp_path).frame["procedures"][1]
    assert codes == "icd10pcs:02703DZ|icd9proc:3961"
    with pytest.raises(ValueError, match="must say its edition"):
        icd_groups("icd9proc:3961")


def test_an_unknown_edition_is_refused(tmp_path: Path) -> None:
    """There is no ICD-11 in MIMIC-IV; a column read wrongly must not pass."""
    with pytest.raises(DataError, match=r"diagnoses_icd.csv.gz: expected icd_version 9 or 10, found 1 of 5 rows with another"):
        built(hospital().diagnosis(3, 31, "J449", 11), tmp_path)
