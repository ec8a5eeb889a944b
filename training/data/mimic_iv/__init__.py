"""MIMIC-IV 2.x and 3.x, from the official tables: one row per index admission, with what was known when the prediction is made.

Layout of the folder: hosp/ with admissions, patients, labevents, d_labitems, diagnoses_icd and procedures_icd; icu/chartevents
and note/discharge, note/radiology where options ask for them; each .csv.gz, .csv or .parquet. docs/mimic_iv.md says how to get
from there to a served model, and what leaks.

Source: Johnson AEW, Bulgarelli L, Shen L et al., "MIMIC-IV, a freely accessible electronic health record dataset", Scientific
Data 10, 2023. Everything here is label-free and fits nothing except which laboratory items are the commonest.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from training.data.built import BuiltData
from training.data.mimic_iv.codes import read_codes
from training.data.mimic_iv.cohort import FlowStep, cohort_warnings, select_cohort
from training.data.mimic_iv.demographics import FACTS as DEMOGRAPHIC_FACTS
from training.data.mimic_iv.demographics import demographics
from training.data.mimic_iv.labs import read_labs
from training.data.mimic_iv.measurements import Measured
from training.data.mimic_iv.notes import FACTS as NOTE_FACTS
from training.data.mimic_iv.notes import read_notes
from training.data.mimic_iv.options import LABELS, MimicOptions, checked_label
from training.data.mimic_iv.tables import Tables
from training.data.mimic_iv.vitals import read_vitals

__all__ = ["LABELS", "LEAKS", "FlowStep", "MimicOptions", "cohort_flow", "read"]

LEAKS = frozenset({"subject_id", "hadm_id", *LABELS})  # never features


def read(root: Path, options: MimicOptions, labels: Sequence[str]) -> BuiltData:
    """The rows of a recipe. Raises `DataError`."""
    label = checked_label(options, tuple(labels))
    tables = Tables(root, options.cache)
    cohort = select_cohort(tables, options, label)
    ids = cohort.stays.select("subject_id", "hadm_id", pl.col("label").alias(label))
    codes, code_notes = read_codes(tables, cohort, options, label)
    texts, text_notes = read_notes(tables, cohort, options)
    with tempfile.TemporaryDirectory(dir=_scratch(root, options)) as scratch:
        measured = [read_labs(tables, cohort, options, Path(scratch))]
        if options.vitals:
            measured.append(read_vitals(tables, cohort, options, Path(scratch)))
    frame = pl.concat([ids, demographics(cohort, options), *_frames(measured), codes, texts], how="horizontal")
    notes = (*cohort.notes(), *cohort_warnings(options, label), *(note for part in measured for note in part.notes))
    facts = {name: fact for part in measured for name, fact in part.facts.items()} | DEMOGRAPHIC_FACTS | NOTE_FACTS
    return BuiltData(frame, facts, (*notes, *code_notes, *text_notes))


def cohort_flow(root: Path, options: MimicOptions, label: str) -> tuple[int, tuple[FlowStep, ...]]:
    """How many admissions there are, and who was left out of them and why. Raises `DataError`."""
    cohort = select_cohort(Tables(root, options.cache), options, checked_label(options, (label,)))
    return cohort.num_admissions, cohort.flow


def _frames(measured: Sequence[Measured]) -> list[pl.DataFrame]:
    return [part.frame for part in measured]


def _scratch(root: Path, options: MimicOptions) -> Path | None:
    """Where what lies between goes: beside the cache where there is one, since it may take as much; else the system's place."""
    if options.cache is None:
        return None
    (folder := root / options.cache).mkdir(parents=True, exist_ok=True)
    return folder
