"""Who is in the cohort: index admissions with their label and prediction time, and who was left out and why.

Follow-up. `patients.dod` holds deaths up to one year after a patient's last discharge, from hospital and state records. No
admission ends later than the last one, so a death within 365 days of any discharge is known, whichever admission is the index.
"""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from training.data.mimic_iv.options import DAYS, IN_HOSPITAL, MimicOptions
from training.data.mimic_iv.tables import Columns, Tables
from training.errors import DataError

_ADMISSIONS: Columns = {
    "subject_id": pl.Int64,
    "hadm_id": pl.Int64,
    "admittime": pl.Datetime,
    "dischtime": pl.Datetime,
    "deathtime": pl.Datetime,
    "edregtime": pl.Datetime,
    "admission_type": pl.String,
    "insurance": pl.String,
    "race": pl.String,
    "hospital_expire_flag": pl.Int64,
}
_PATIENTS: Columns = {
    "subject_id": pl.Int64,
    "gender": pl.String,
    "anchor_age": pl.Int64,
    "anchor_year": pl.Int64,
    "dod": pl.Date,
}


@dataclass(frozen=True, slots=True)
class FlowStep:
    """One reason to leave admissions out."""

    reason: str
    num_excluded: int
    num_left: int


@dataclass(frozen=True, slots=True)
class Cohort:
    """The rows, and how they came to be these.

    `stays`: row (position), subject_id, hadm_id, starts (arrival: emergency department or ward), predicted (the time of the
    prediction), admittime, dischtime, label, and what is known of the patient at admission.
    """

    stays: pl.DataFrame
    admissions: pl.DataFrame  # all of them: subject_id, hadm_id, admittime, dischtime
    num_admissions: int
    flow: tuple[FlowStep, ...]

    def notes(self) -> tuple[str, ...]:
        """The flow in words, a line a step."""
        steps = (f"{step.num_excluded} left out: {step.reason}; {step.num_left} left" for step in self.flow if step.num_excluded)
        num_patients = self.stays["subject_id"].n_unique()
        last = f"{self.stays.height} rows of {num_patients} patients, {int(self.stays['label'].sum())} with the event"
        return (f"{self.num_admissions} admissions", *steps, last)


def select_cohort(tables: Tables, options: MimicOptions, label: str) -> Cohort:
    """Apply the rules one after another. Raises `DataError` when nobody is left."""
    admissions = tables.read("admissions", _ADMISSIONS)
    joined = _described(admissions, tables.read("patients", _PATIENTS), options, label)
    left, flow = joined, []
    for reason, keep in _rules(options, label):
        kept = left.filter(keep(left).fill_null(value=False))
        flow.append(FlowStep(reason, left.height - kept.height, kept.height))
        left = kept
    if left.height == 0:
        told = "; ".join(f"{step.num_excluded} {step.reason}" for step in flow if step.num_excluded)
        raise DataError(f"{tables.root}: no admission of {joined.height} is left: {told}")
    stays = left.sort("subject_id", "admittime", "hadm_id").with_row_index("row")
    return Cohort(stays, admissions.select("subject_id", "hadm_id", "admittime", "dischtime"), joined.height, tuple(flow))


def _described(admissions: pl.DataFrame, patients: pl.DataFrame, options: MimicOptions, label: str) -> pl.DataFrame:
    """Every admission with age, death, prediction time and label."""
    for frame, key in ((admissions, "hadm_id"), (patients, "subject_id")):
        if num_more := frame.height - frame[key].n_unique():
            raise DataError(f"MIMIC-IV tables: expected every {key} once, found {num_more} of {frame.height} rows repeating one")
    age = pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year")
    discharged = pl.col("dischtime").dt.date()
    died_here = (
        (pl.col("hospital_expire_flag") == 1).fill_null(value=False)
        | pl.col("deathtime").is_not_null()
        | (pl.col("dod") <= discharged).fill_null(value=False)
    )
    return (
        admissions.join(patients, on="subject_id", how="left")
        .with_columns(age=age, died_here=died_here, num_admissions=pl.len().over("subject_id"))
        .with_columns(
            starts=pl.min_horizontal("admittime", "edregtime"),
            predicted=_prediction_time(options),
            gone=pl.min_horizontal("dischtime", "deathtime"),
            label=(pl.col("died_here") if label == IN_HOSPITAL else _died_within(DAYS[label])).cast(pl.Int8),
        )
    )


def _prediction_time(options: MimicOptions) -> pl.Expr:
    if options.hours is None:
        return pl.col("dischtime")
    return pl.col("admittime") + pl.duration(seconds=round(options.hours * 3600))


def _died_within(days: int) -> pl.Expr:
    """Whether death came at most so many days after the day of discharge; dates alone, since `dod` has no time of day."""
    return ((pl.col("dod") - pl.col("dischtime").dt.date()) <= pl.duration(days=days)).fill_null(value=False)


Keep = Callable[[pl.DataFrame], pl.Series]


def _rules(options: MimicOptions, label: str) -> list[tuple[str, Keep]]:
    """Reason to leave out, and which admissions stay; the index admission is chosen among those left by the others."""
    rules: list[tuple[str, Keep]] = [
        ("the patient is not in the table patients", lambda f: f["anchor_age"].is_not_null()),
        ("no discharge after the admission", lambda f: f["dischtime"] > f["admittime"]),
        (f"younger than {options.min_age}", lambda f: f["age"] >= options.min_age),
        (
            f"of patients with fewer than {options.min_admissions} admissions",
            lambda f: f["num_admissions"] >= options.min_admissions,
        ),
    ]
    if label != IN_HOSPITAL:
        rules.append(("died in hospital or on the day of discharge", lambda f: ~f["died_here"]))
    if options.hours is not None:
        rules.append((f"left or died within {options.hours:g} h of admission", lambda f: f["gone"] > f["predicted"]))
    if options.index != "all":
        rules.append((f"not the patient's {options.index} admission", lambda f: _is_index(f, options.index)))
    return rules


def _is_index(frame: pl.DataFrame, which: str) -> pl.Series:
    """Whether an admission is its patient's first or last; of two at one time the one with the smaller or larger number."""
    order = pl.struct("admittime", "hadm_id").rank("ordinal", descending=which == "last").over("subject_id")
    return frame.select(order == 1).to_series()


def cohort_warnings(options: MimicOptions, label: str) -> tuple[str, ...]:
    """What a reader of results should know of these rules."""
    told = []
    if options.index == "last":
        told.append("a patient's last admission is known to be the last only afterwards: at the bedside risks may be lower")
    if options.index == "all":
        told.append(
            "several rows of one patient: split by subject_id, and intervals that take rows as independent are too narrow"
        )
    if options.min_admissions > 1 and options.index != "last":
        told.append(
            "who has several admissions survived the earlier ones: with index = last that lies in the past, here it does not"
        )
    if options.hours is not None and label != IN_HOSPITAL:
        told.append("rows are of those discharged alive, which is not known yet when the prediction is made")
    return tuple(told)
