"""The official files: found in every format, read lazily, and told clearly where they are not what they should be."""

import os
from pathlib import Path

import polars as pl
import pytest

from tests.training.data.mimic_iv.hospital import small_hospital, write_table
from training.data.mimic_iv import MimicOptions, read
from training.data.mimic_iv.tables import Tables
from training.errors import DataError

LABEL = ["one_year_mortality"]
WANTED = {"subject_id": pl.Int64, "charttime": pl.Datetime, "text": pl.String}


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """Tables as csv.gz, csv or parquet of text become the same rows."""
    hospital = small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5).diagnosis(3, 31, "I509")
    wanted = read(hospital.write(tmp_path / "a"), MimicOptions(), LABEL)
    found = read(hospital.write(tmp_path / "b", suffix=suffix), MimicOptions(), LABEL)
    assert found.frame.equals(wanted.frame)
    assert found.notes == wanted.notes


def test_parquet_tables_may_have_types(tmp_path: Path) -> None:
    """Times that are times already, and a date of death that is a date, are read as their text would be."""
    hospital = small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5)
    wanted = read(hospital.write(tmp_path / "a"), MimicOptions(), LABEL)
    root = hospital.write(tmp_path / "b", suffix=".parquet")
    times = pl.col("admittime", "dischtime", "deathtime", "edregtime").str.to_datetime("%Y-%m-%d %H:%M:%S")
    numbers = pl.col("subject_id", "hadm_id", "hospital_expire_flag").cast(pl.Int64)
    write_table(hospital.frame("admissions").with_columns(times, numbers), root / "hosp" / "admissions.parquet")
    died = pl.col("dod").str.to_date("%Y-%m-%d")
    write_table(hospital.frame("patients").with_columns(died), root / "hosp" / "patients.parquet")
    assert read(root, MimicOptions(), LABEL).frame.equals(wanted.frame)


def test_a_missing_table_is_told_with_the_names_it_may_have(tmp_path: Path) -> None:
    """What was expected where, and whether the folder is there at all."""
    root = small_hospital().write(tmp_path, leave_out=["admissions"])
    with pytest.raises(
        DataError, match=r"hosp: expected admissions.csv.gz, admissions.csv or admissions.parquet .* none of them"
    ):
        read(root, MimicOptions(), LABEL)
    with pytest.raises(DataError, match=r"icu: expected chartevents.csv.gz, .* found no such folder"):
        Tables(root).path("chartevents")


def test_a_missing_column_is_told(tmp_path: Path) -> None:
    """The columns needed and the ones that are not there."""
    root = small_hospital().write(tmp_path)
    write_table(small_hospital().frame("patients").drop("dod"), root / "hosp" / "patients.csv.gz")
    with pytest.raises(DataError, match=r"patients.csv.gz: expected columns subject_id, .*, dod, found no dod$"):
        read(root, MimicOptions(), LABEL)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("dischtime", "15/01/2150", r"column dischtime: 1 of 4 values are not times"),
        ("hadm_id", "secret", "cannot be read as a table"),
    ],
)
def test_a_bad_cell_is_told_without_its_content(tmp_path: Path, column: str, value: str, told: str) -> None:
    """A cell that is no time or no number is an error that counts and never quotes it."""
    hospital = small_hospital()
    hospital.tables["admissions"][0][column] = value
    with pytest.raises(DataError, match=told) as error:
        read(hospital.write(tmp_path), MimicOptions(), LABEL)
    assert value not in str(error.value)


def test_what_is_no_gzip_is_told(tmp_path: Path) -> None:
    """A damaged file is one line that names it."""
    root = small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5).write(tmp_path)
    path = root / "hosp" / "labevents.csv.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"labevents.csv.gz: ") as error:
        read(root, MimicOptions(), LABEL)
    assert "\n" not in str(error.value)


def test_lines_within_quotes_are_text(tmp_path: Path) -> None:
    """A note keeps its lines, quotes and commas, whichever the format."""
    text = 'Service: MEDICINE\n\nHe said "well, no",\nthen left.'
    hospital = small_hospital().add("radiology", subject_id=1, charttime="2150-01-11 00:00:00", text=text)
    frame = Tables(hospital.write(tmp_path)).scan("radiology", WANTED).collect()
    assert frame["text"].to_list() == [text]


def test_the_cache_is_made_once_and_again_for_another_file(tmp_path: Path) -> None:
    """A second run reads the parquet copy; another original has another copy; results are those without a cache."""
    hospital = small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5)
    root, options = hospital.write(tmp_path / "m"), MimicOptions(cache=Path("../cache"))
    wanted = read(root, MimicOptions(), LABEL)
    assert read(root, options, LABEL).frame.equals(wanted.frame)
    (copy,) = [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("labevents")]
    write_table(pl.read_parquet(copy).with_columns(valuenum=pl.lit(7.0)), copy)  # shows which of the two is read
    assert read(root, options, LABEL).frame["lab_creatinine"].to_list() == [None, 7.0]
    os.utime(root / "hosp" / "labevents.csv.gz", ns=(1, 1))
    assert read(root, options, LABEL).frame.equals(wanted.frame)


def test_nothing_is_left_beside_the_cache(tmp_path: Path) -> None:
    """What lies between the tables and the rows is removed, and an original is never touched."""
    root = small_hospital().lab(3, 31, "2160-06-02 07:00:00", 1.5).write(tmp_path / "m")
    before = {path: path.read_bytes() for path in root.rglob("*.csv.gz")}
    read(root, MimicOptions(cache=tmp_path / "cache"), LABEL)
    assert all(path.name.endswith(".parquet") for path in (tmp_path / "cache").iterdir())
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
