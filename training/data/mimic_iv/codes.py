"""Diagnosis and procedure codes of a row's admissions, in full and with their edition.

MIMIC-IV's codes are given for billing after discharge, by coders who read the whole record. Those of the index admission are
thus known to nobody at the bedside: they may describe the end of the stay, and they leak whatever happened in it.
"""

import polars as pl

from service.bundle.icd import icd_groups
from training.data.mimic_iv.cohort import Cohort
from training.data.mimic_iv.demographics import prior_admissions
from training.data.mimic_iv.options import MimicOptions
from training.data.mimic_iv.tables import Columns, Tables
from training.errors import DataError

SEPARATOR = "|"
_COLUMNS: Columns = {"hadm_id": pl.Int64, "icd_code": pl.String, "icd_version": pl.Int64}
# Procedures are of other classifications than diagnoses (ICD-9-CM volume 3, ICD-10-PCS), and many look alike: 39.61, 396.1.
_PREFIXES = {"diagnoses_icd": {9: "icd9:", 10: "icd10:"}, "procedures_icd": {9: "icd9proc:", 10: "icd10pcs:"}}


def read_codes(tables: Tables, cohort: Cohort, options: MimicOptions, label: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Columns diagnoses and procedures, joined by "|", null where there are none; and the notes. Raises `DataError`."""
    which = options.codes(label)
    admissions = _admissions(cohort, which)
    diagnoses, dropped = _known_diagnoses(_prefixed(tables, "diagnoses_icd"))
    columns = {
        "diagnoses": _joined(diagnoses, admissions, cohort.stays.height),
        "procedures": _joined(_prefixed(tables, "procedures_icd"), admissions, cohort.stays.height),
    }
    notes = [
        f"codes: of the {which.replace('_', ' ')} admission(s); {columns['diagnoses'].is_not_null().sum()} rows have diagnoses"
    ]
    if which != "prior":
        notes.append("codes of the index admission are written after discharge for billing: a service at discharge lacks them")
    return pl.DataFrame(columns), (*notes, *dropped)


def _admissions(cohort: Cohort, which: str) -> pl.DataFrame:
    """The admissions whose codes a row has: row, hadm_id."""
    index, prior = cohort.stays.select("row", "hadm_id"), prior_admissions(cohort).select("row", "hadm_id")
    return {"index": index, "prior": prior, "prior_and_index": pl.concat([prior, index])}[which]


def _prefixed(tables: Tables, name: str) -> pl.DataFrame:
    """hadm_id and code of every row of a table."""
    frame = tables.read(name, _COLUMNS).drop_nulls("icd_code")
    if num_bad := int((~frame["icd_version"].is_in(list(_PREFIXES[name]))).fill_null(value=True).sum()):
        raise DataError(f"{tables.path(name)}: expected icd_version 9 or 10, found {num_bad} of {frame.height} rows with another")
    prefix = pl.col("icd_version").replace_strict(_PREFIXES[name], return_dtype=pl.String)
    code = pl.col("icd_code").str.strip_chars().str.to_uppercase()
    return frame.filter(code != "").select("hadm_id", code=prefix + code)


def _known_diagnoses(codes: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Without what is no code of its edition (NoDx), so that codes can be grouped; and a note on it."""
    strange = [code for code in codes["code"].unique() if not _has_groups(code)]
    kept = codes.filter(~pl.col("code").is_in(strange))
    num_dropped = codes.height - kept.height
    return kept, (f"{num_dropped} of {codes.height} diagnosis codes dropped: no code of their edition",) if num_dropped else ()


def _has_groups(code: str) -> bool:
    try:
        icd_groups(code)
    except ValueError:
        return False
    return True


def _joined(codes: pl.DataFrame, admissions: pl.DataFrame, num_rows: int) -> pl.Series:
    """All codes of each row, every one once, in the order of their spelling."""
    found = (
        admissions.lazy()
        .join(codes.lazy(), on="hadm_id")
        .group_by("row")
        .agg(pl.col("code").unique().sort().str.join(SEPARATOR))
        .collect(engine="streaming")
    )
    rows = pl.DataFrame({"row": pl.arange(0, num_rows, eager=True, dtype=pl.UInt32)})
    return rows.join(found, on="row", how="left", maintain_order="left")["code"]
