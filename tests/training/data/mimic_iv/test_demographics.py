"""Age, sex, kind of admission and history."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.mimic_iv.hospital import small_hospital
from training.data.mimic_iv import MimicOptions, read


def rows(root: Path, label: str = "one_year_mortality", **options: Any) -> list[dict[str, Any]]:
    hospital = small_hospital().lab(3, 31, "2160-06-01 09:00:00", 1.5)
    return read(hospital.write(root), MimicOptions(**options), [label]).frame.to_dicts()


def test_what_is_known_at_discharge(tmp_path: Path) -> None:
    """Age at admission, sex as FHIR spells it, days since the discharge before, days in hospital."""
    first, second = rows(tmp_path)
    assert (first["age"], first["sex"], first["admission_type"]) == (61.0, "female", "urgent")
    assert first["num_prior_admissions"] == 1
    assert first["days_since_last_discharge"] == pytest.approx(409 + 20 / 24)
    assert first["length_of_stay"] == pytest.approx(4 + 4 / 24)
    assert (second["sex"], second["num_prior_admissions"], second["days_since_last_discharge"]) == ("male", 0, None)


def test_the_length_of_the_stay_is_not_known_during_it(tmp_path: Path) -> None:
    """It would tell when the patient leaves or dies."""
    assert "length_of_stay" not in rows(tmp_path, "in_hospital_mortality", predict_at=24.0)[0]


def test_the_order_of_the_files_rows_means_nothing(tmp_path: Path) -> None:
    """Admissions and patients in any order make the same rows."""
    hospital = small_hospital().lab(3, 31, "2160-06-01 09:00:00", 1.5).diagnosis(1, 11, "I10")
    wanted = read(hospital.write(tmp_path / "a"), MimicOptions(index="all"), ["one_year_mortality"]).frame
    for name in ("admissions", "patients"):
        hospital.tables[name].reverse()
    assert read(hospital.write(tmp_path / "b"), MimicOptions(index="all"), ["one_year_mortality"]).frame.equals(wanted)
