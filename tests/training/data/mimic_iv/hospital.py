"""A hospital of a few patients, written as MIMIC-IV's official tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

Rows = Sequence[Sequence[Any]]

_TEXT_COLUMNS = {
    "patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "admissions": (
        "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id admission_location"
        " discharge_location insurance language marital_status race edregtime edouttime hospital_expire_flag"
    ),
    "labevents": (
        "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime value valuenum valueuom"
        " ref_range_lower ref_range_upper flag priority comments"
    ),
    "d_labitems": "itemid label fluid category",
    "diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
    "chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom warning",
    "radiology": "note_id subject_id hadm_id note_type note_seq charttime storetime text",
    "discharge": "note_id subject_id hadm_id note_type note_seq charttime storetime text",
}
COLUMNS = {name: columns.split() for name, columns in _TEXT_COLUMNS.items()}
FOLDERS = {"chartevents": "icu", "radiology": "note", "discharge": "note"}
ITEMS = (
    (50912, "Creatinine", "Blood", "Chemistry"),
    (51249, "MCHC", "Blood", "Hematology"),
    (51003, "Troponin T", "Blood", "Chemistry"),
    (53001, "Some Factor, Free", "Pleural", "Chemistry"),
)


@dataclass
class Hospital:
    """Rows by table, as dicts of the columns that matter; `write` fills in the rest with nothing."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    extra_columns: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in ITEMS:
            self.add("d_labitems", **dict(zip(COLUMNS["d_labitems"], item, strict=True)))

    def add(self, table: str, **values: Any) -> "Hospital":
        """One row."""
        self.tables[table].append(values)
        return self

    def patient(self, subject: int, *, age: int = 60, year: int = 2150, dod: str | None = None, gender: str = "F") -> "Hospital":
        """A patient of `age` in `year`."""
        return self.add("patients", subject_id=subject, gender=gender, anchor_age=age, anchor_year=year, dod=dod)

    def stay(self, subject: int, hadm: int, admitted: str, left: str, **more: Any) -> "Hospital":
        """An admission, alive at discharge unless `more` says otherwise."""
        told = {"admission_type": "URGENT", "insurance": "Other", "race": "UNKNOWN", "hospital_expire_flag": 0, **more}
        return self.add("admissions", subject_id=subject, hadm_id=hadm, admittime=admitted, dischtime=left, **told)

    def lab(self, subject: int, hadm: int | None, at: str, value: float | None, **more: Any) -> "Hospital":
        """A laboratory result; a creatinine in mg/dL unless `more` says otherwise."""
        told = {"itemid": 50912, "charttime": at, "valuenum": value, "valueuom": "mg/dL", **more}
        return self.add("labevents", subject_id=subject, hadm_id=hadm, **told)

    def diagnosis(self, subject: int, hadm: int, code: str, edition: int = 10, table: str = "diagnoses_icd") -> "Hospital":
        """A code given for billing."""
        return self.add(table, subject_id=subject, hadm_id=hadm, icd_code=code, icd_version=edition)

    def frame(self, name: str) -> pl.DataFrame:
        """A table, all text."""
        columns = [*COLUMNS[name], *self.extra_columns.get(name, [])]
        rows = [[None if row.get(c) is None else str(row[c]) for c in columns] for row in self.tables[name]]
        return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")

    def write(self, root: Path, *, suffix: str = ".csv.gz", leave_out: Sequence[str] = ()) -> Path:
        """All tables below `root`; icu/ and note/ only where they have rows."""
        for name in COLUMNS:
            if name in leave_out or (name in FOLDERS and not self.tables[name]):
                continue
            (folder := root / FOLDERS.get(name, "hosp")).mkdir(parents=True, exist_ok=True)
            write_table(self.frame(name), folder / f"{name}{suffix}")
        return root


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """A table in the format that its name says."""
    if path.name.endswith(".parquet"):
        frame.write_parquet(path)
    else:
        frame.write_csv(path, compression="gzip" if path.name.endswith(".gz") else "uncompressed")


def small_hospital() -> Hospital:
    """Three patients: one with two admissions who dies half a year later, one who dies in hospital, one who lives."""
    return (
        Hospital()
        .patient(1, age=60, year=2150, dod="2151-08-30")
        .stay(1, 11, "2150-01-10 08:00:00", "2150-01-15 12:00:00")
        .stay(1, 12, "2151-03-01 08:00:00", "2151-03-05 12:00:00", edregtime="2151-03-01 02:00:00")
        .patient(2, dod="2150-05-05", gender="M")
        .stay(2, 21, "2150-05-01 08:00:00", "2150-05-05 20:00:00", deathtime="2150-05-05 20:00:00", hospital_expire_flag=1)
        .patient(3, age=40, year=2160, gender="M")
        .stay(3, 31, "2160-06-01 08:00:00", "2160-06-03 08:00:00")
    )
