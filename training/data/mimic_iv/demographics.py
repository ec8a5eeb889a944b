"""What is known of the patient when the prediction is made: age, sex, kind of admission, and the hospital history."""

import polars as pl

from training.data.mimic_iv.cohort import Cohort
from training.data.mimic_iv.options import MimicOptions
from training.data.modalities import ColumnFacts

FACTS = {
    "age": ColumnFacts(loinc=("30525-0",), unit="a"),
    "sex": ColumnFacts(loinc=("46098-0", "76689-9")),
    "days_since_last_discharge": ColumnFacts(unit="d"),
    "length_of_stay": ColumnFacts(unit="d"),
}
_SEXES = {"F": "female", "M": "male"}  # as FHIR spells them


def demographics(cohort: Cohort, options: MimicOptions) -> pl.DataFrame:
    """One row per stay. The length of the stay is a column only where the prediction is made at its end."""
    age, sex = pl.col("age").cast(pl.Float64), pl.col("gender").replace_strict(_SEXES, default=None, return_dtype=pl.String)
    kinds = (pl.col(name).str.to_lowercase().str.strip_chars() for name in ("admission_type", "insurance", "race"))
    described = cohort.stays.select("row", "dischtime", "admittime", age, sex.alias("sex"), *kinds)
    described = described.join(_history(cohort), on="row", how="left", maintain_order="left").with_columns(
        pl.col("num_prior_admissions").fill_null(0)
    )
    if options.hours is None:
        days = (pl.col("dischtime") - pl.col("admittime")).dt.total_minutes() / (24 * 60)
        described = described.with_columns(days.alias("length_of_stay"))
    return described.drop("row", "dischtime", "admittime")


def prior_admissions(cohort: Cohort) -> pl.DataFrame:
    """Which admissions of the patient had ended when each stay began: row, hadm_id, dischtime."""
    earlier = cohort.admissions.select("subject_id", "hadm_id", "dischtime")
    return (
        cohort.stays.select("row", "subject_id", "admittime", index="hadm_id")
        .join(earlier, on="subject_id")
        .filter(pl.col("dischtime") <= pl.col("admittime"), pl.col("hadm_id") != pl.col("index"))
        .select("row", "hadm_id", "dischtime", "admittime")
    )


def _history(cohort: Cohort) -> pl.DataFrame:
    since = (pl.col("admittime") - pl.col("dischtime").max()).dt.total_minutes() / (24 * 60)
    return (
        prior_admissions(cohort)
        .group_by("row")
        .agg(num_prior_admissions=pl.len().cast(pl.Int64), days_since_last_discharge=since.first())
    )
