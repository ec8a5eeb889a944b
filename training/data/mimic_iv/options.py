"""The options of a recipe that reads MIMIC-IV, and which of them go together."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from service.bundle.features import Summary
from training.config import Config
from training.errors import DataError

Label = Literal["one_year_mortality", "thirty_day_mortality", "in_hospital_mortality"]
DAYS: dict[str, int] = {"one_year_mortality": 365, "thirty_day_mortality": 30}  # after discharge
IN_HOSPITAL: Label = "in_hospital_mortality"
LABELS: tuple[str, ...] = (*DAYS, IN_HOSPITAL)

NoteKind = Literal["radiology", "discharge", "prior_discharge"]
Summaries = Annotated[tuple[Summary, ...], Field(min_length=1)]
Codes = Literal["prior", "prior_and_index", "index"]


class MimicOptions(Config):
    """What rows are, when the prediction is made, and what is known by then."""

    index: Literal["last", "first", "all"] = "last"  # which of a patient's admissions are rows
    min_admissions: PositiveInt = 1  # patients with fewer admissions are left out; the paper's "more than one visit": 2
    min_age: int = Field(default=18, ge=0)  # at admission, in years
    predict_at: Literal["discharge"] | PositiveFloat = "discharge"  # or so many hours after admission

    lab_items: PositiveInt | tuple[int, ...] = 40  # so many commonest items, or these itemids
    lab_summaries: Summaries = ("last",)
    labs_window_hours: PositiveFloat | None = None  # before the prediction, whichever the admission; None: of this admission
    vitals: bool = False  # from icu/chartevents
    vital_summaries: Summaries = ("last", "minimum", "maximum")
    vitals_window_hours: PositiveFloat | None = None  # as labs_window_hours

    codes_from: Codes | None = None  # None: prior_and_index where the index admission's may be used, else prior

    notes: tuple[NoteKind, ...] = ()
    keep_sections: tuple[str, ...] = ()  # of a note, these alone; none: all
    drop_sections: tuple[str, ...] = ("Discharge Condition", "Discharge Disposition", "Facility")
    note_characters: PositiveInt = 10_000  # of all notes of a row, the last ones

    cache: Path | None = None  # folder for parquet copies of the large tables, relative to root: a second run reads those

    @property
    def hours(self) -> float | None:
        """How long after admission the prediction is made; None: at discharge."""
        return None if self.predict_at == "discharge" else float(self.predict_at)

    def index_documents_known(self, label: str) -> bool:
        """Whether what is written at discharge may be used: the prediction is made at discharge, of a later event."""
        return self.hours is None and label != IN_HOSPITAL

    def codes(self, label: str) -> Codes:
        """The admissions whose codes are features."""
        if self.codes_from is not None:
            return self.codes_from
        return "prior_and_index" if self.index_documents_known(label) else "prior"


def checked_label(options: MimicOptions, labels: tuple[str, ...]) -> str:
    """The one label. Raises `DataError` for another than those defined, and for options that would let the label leak."""
    if len(labels) != 1 or labels[0] not in LABELS:
        raise DataError(f"data.label: expected one of {', '.join(LABELS)}, found {', '.join(labels)}")
    label = labels[0]
    if label == IN_HOSPITAL and options.hours is None:
        raise DataError(f"data.label {label}: expected options.predict_at in hours after admission, found discharge (leak)")
    if not options.index_documents_known(label):
        leaks = "it is written at discharge or later, so it leaks what is to be predicted"
        if options.codes_from in {"index", "prior_and_index"}:
            raise DataError(f"data.options.codes_from: found {options.codes_from}, expected prior; {leaks}")
        if "discharge" in options.notes:
            raise DataError(f"data.options.notes: found discharge, expected radiology or prior_discharge; {leaks}")
    for name in ("lab_summaries", "vital_summaries", "notes"):
        chosen = getattr(options, name)
        if len(set(chosen)) != len(chosen):
            raise DataError(f"data.options.{name}: expected each once, found {', '.join(chosen)}")
    return label
