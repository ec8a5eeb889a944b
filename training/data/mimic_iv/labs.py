"""Laboratory results: the commonest items of the cohort, or those named."""

import re
from pathlib import Path

import polars as pl

from training.data.mimic_iv.cohort import Cohort
from training.data.mimic_iv.items import LABS, Quantity
from training.data.mimic_iv.measurements import EVENTS, KNOWN_AT, Measured, count_stays, keep_events, summarise
from training.data.mimic_iv.options import MimicOptions
from training.data.mimic_iv.tables import Columns, Tables
from training.errors import DataError

_LABELS: Columns = {"itemid": pl.Int64, "label": pl.String, "fluid": pl.String}
_LOINC = re.compile(r"[0-9]{1,8}-[0-9]")


def read_labs(tables: Tables, cohort: Cohort, options: MimicOptions, scratch: Path) -> Measured:
    """Columns `lab_<name>`. `scratch` is a folder for what lies between. Raises `DataError`."""
    file = scratch / "labs.parquet"
    events, source = tables.scan("labevents", EVENTS, optional=KNOWN_AT), tables.path("labevents")
    keep_events(events, cohort.stays, file, source=source, window_hours=options.labs_window_hours)
    counts = count_stays(file, cohort.stays.height)
    items, notes = _chosen(counts, options)
    if not items:
        raise DataError(f"{source}: holds no number in the window of any of {cohort.stays.height} stays")
    measured = summarise(
        file,
        [_quantity(item, _described(tables)) for item in items],
        options.lab_summaries,
        num_rows=cohort.stays.height,
        what="lab",
        window=options.labs_window_hours,
    )
    return Measured(measured.frame, measured.facts, (*notes, *measured.notes))


def _chosen(counts: pl.DataFrame, options: MimicOptions) -> tuple[list[int], tuple[str, ...]]:
    """The itemids that become columns, and a note on how they were chosen."""
    if not isinstance(options.lab_items, int):
        found = set(counts["itemid"])
        if absent := [item for item in options.lab_items if item not in found]:
            raise DataError(
                f"data.options.lab_items: no number of itemid {', '.join(map(str, absent))} in the window of any stay"
            )
        return list(dict.fromkeys(options.lab_items)), ()
    chosen = counts["itemid"].head(options.lab_items).to_list()
    note = (
        f"lab: the {len(chosen)} items with a number in most rows, of {counts.height}; counted over all rows, no label looked at"
    )
    return chosen, (note,)


def _described(tables: Tables) -> dict[int, tuple[str, str, str | None]]:
    """Of every itemid the label, fluid and LOINC code, the code where the table still has it (MIMIC-IV 1.0)."""
    optional: Columns = {"loinc_code": pl.String}
    frame = tables.scan("d_labitems", _LABELS, optional=optional).collect()
    codes = frame["loinc_code"].to_list() if "loinc_code" in frame.columns else [None] * frame.height
    labels = zip(frame["label"].fill_null(""), frame["fluid"].fill_null(""), codes, strict=True)
    return dict(zip(frame["itemid"], labels, strict=True))


def _quantity(item: int, described: dict[int, tuple[str, str, str | None]]) -> Quantity:
    """What is known of an item: shipped knowledge first, else the table of items; its name has the itemid then."""
    label, fluid, code = described.get(item, ("", "", None))
    loinc = (code,) if code and _LOINC.fullmatch(code) else ()
    known = next((quantity for quantity in LABS if item in quantity.items), None)
    if known is None:
        words = f"{label} {'' if fluid == 'Blood' else fluid} {item}".lower()
        return Quantity("_".join(re.findall(r"[a-z0-9]+", words)), (item,), loinc)
    others = tuple(other for other in known.loinc if other not in loinc)
    return Quantity(known.name, known.items, (*loinc, *others), known.unit, known.lower, known.upper)
