"""Notes (MIMIC-IV-Note): which reports and summaries a row has, and which of their sections.

A radiology report belongs to a row when it was written from arrival to the prediction; a discharge summary by its admission. The
summary of the index admission is written at discharge by someone who knows how the patient left, often in words ("home hospice").
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import polars as pl

from training.data.mimic_iv.cohort import Cohort
from training.data.mimic_iv.demographics import prior_admissions
from training.data.mimic_iv.measurements import KNOWN_AT
from training.data.mimic_iv.options import MimicOptions, NoteKind
from training.data.mimic_iv.tables import Columns, Tables, reading
from training.data.modalities import ColumnFacts

# The headings that begin a section; "Mental Status:" and the like stand inside of one.
SECTIONS = (
    "Allergies", "Attending", "Brief Hospital Course", "Chief Complaint", "Comparison", "Conclusion", "Discharge Condition",
    "Discharge Diagnosis", "Discharge Disposition", "Discharge Instructions", "Discharge Medications", "Examination", "Exam",
    "Facility", "Family History", "Findings", "Followup Instructions", "History of Present Illness", "History", "Impression",
    "Indication", "Major Surgical or Invasive Procedure", "Medications on Admission", "Past Medical History",
    "Pertinent Results", "Physical Exam", "Review of Systems", "Service", "Social History", "Technique", "Transitional Issues",
)  # fmt: skip
_COLUMNS: Columns = {"subject_id": pl.Int64, "hadm_id": pl.Int64, "charttime": pl.Datetime, "text": pl.String}
_REPORT, _SUMMARY = ColumnFacts(loinc=("18748-4",)), ColumnFacts(loinc=("18842-5",))  # LOINC's document types
FACTS = {"note_radiology": _REPORT, "note_discharge": _SUMMARY, "note_prior_discharge": _SUMMARY}
_BLANKED = re.compile(r"_{2,}")  # where a name or date stood
_NOTES_AT_ONCE = 10_000


def read_notes(tables: Tables, cohort: Cohort, options: MimicOptions) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """A column `note_<kind>` for every kind asked for, null where a row has none; and the notes. Raises `DataError`."""
    columns, told = {}, []
    for kind in options.notes:
        texts = _texts(tables, cohort, options, kind)
        columns[f"note_{kind}"] = pl.Series([texts.get(row) for row in range(cohort.stays.height)], dtype=pl.String)
        told.append(f"note_{kind}: {len(texts)} of {cohort.stays.height} rows have one or more")
    if "discharge" in options.notes:
        told.append("note_discharge is written at discharge by who knows how the patient left: it leaks the prognosis")
    return pl.DataFrame(columns), tuple(told)


def _texts(tables: Tables, cohort: Cohort, options: MimicOptions, kind: NoteKind) -> dict[int, str]:
    """Row to its notes, in the order of their times."""
    found: defaultdict[int, list[tuple[object, str]]] = defaultdict(list)
    name = "radiology" if kind == "radiology" else "discharge"
    scan = tables.scan(name, _COLUMNS, optional=KNOWN_AT)
    with reading(tables.path(name)):
        for batch in _of_rows(scan, cohort, kind).collect_batches(chunk_size=_NOTES_AT_ONCE, maintain_order=True):
            for row, time, text in batch.select("row", "charttime", "text").iter_rows():
                if kept := kept_text(text, keep=options.keep_sections, drop=options.drop_sections):
                    found[row].append((time, kept[-options.note_characters :]))
    return {row: _latest(notes, options.note_characters) for row, notes in found.items()}


def _of_rows(notes: pl.LazyFrame, cohort: Cohort, kind: NoteKind) -> pl.LazyFrame:
    """The notes of each row."""
    notes = notes.filter(pl.col("text").is_not_null())
    if kind == "discharge":
        return notes.join(cohort.stays.lazy().select("row", "hadm_id"), on="hadm_id")
    if kind == "prior_discharge":
        return notes.join(prior_admissions(cohort).lazy().select("row", "hadm_id"), on="hadm_id")
    known = pl.col("storetime") if "storetime" in notes.collect_schema().names() else pl.col("charttime")
    stays = cohort.stays.lazy().select("row", "subject_id", "starts", "predicted")
    return notes.join(stays, on="subject_id").filter(
        pl.col("charttime").is_between(pl.col("starts"), pl.col("predicted")),
        (known <= pl.col("predicted")).fill_null(value=True),
    )


def _latest(notes: list[tuple[object, str]], num_characters: int) -> str:
    """Notes joined in order of their times (a note without one comes first), cut at the front."""
    ordered = sorted(notes, key=lambda note: (note[0] is not None, str(note[0])))
    return "\n".join(text for _, text in ordered)[-num_characters:]


def kept_text(text: str, *, keep: Sequence[str], drop: Sequence[str]) -> str:
    """The sections of a note that are wanted, under their headings, without the marks of what was blanked."""
    wanted = [
        f"{heading}: {content}" if heading else content
        for heading, content in sections(text, (*SECTIONS, *keep, *drop))
        if _is_wanted(heading, keep, drop)
    ]
    return _BLANKED.sub(" ", "\n".join(wanted)).strip()


def _is_wanted(heading: str, keep: Sequence[str], drop: Sequence[str]) -> bool:
    name = heading.lower()
    return name not in {other.lower() for other in drop} and (not keep or name in {other.lower() for other in keep})


def sections(text: str, headings: Sequence[str]) -> list[tuple[str, str]]:
    """Heading and content of each section; what stands before the first heading has the heading ""."""
    names = "|".join(re.escape(heading) for heading in sorted(set(headings), key=len, reverse=True))
    starts = list(re.finditer(rf"^[ \t]*({names})[ \t]*:", text, re.IGNORECASE | re.MULTILINE))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    first = text[: starts[0].start()] if starts else text
    parts = [(match[1], text[match.end() : end].strip()) for match, end in zip(starts, ends, strict=True)] if starts else []
    return [("", first.strip()), *parts]
