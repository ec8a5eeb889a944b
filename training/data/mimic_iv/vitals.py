"""Vital signs charted in intensive care (icu/chartevents): pressures, rates, temperature, saturation, Glasgow coma scale."""

from pathlib import Path

import polars as pl

from training.data.mimic_iv.cohort import Cohort
from training.data.mimic_iv.items import VITALS
from training.data.mimic_iv.measurements import EVENTS, KNOWN_AT, Measured, keep_events, summarise
from training.data.mimic_iv.options import MimicOptions
from training.data.mimic_iv.tables import Tables


def read_vitals(tables: Tables, cohort: Cohort, options: MimicOptions, scratch: Path) -> Measured:
    """Columns `vital_<name>`, null for stays without intensive care. Raises `DataError`."""
    file = scratch / "vitals.parquet"
    items = [item for quantity in VITALS for item in quantity.items]
    events = tables.scan("chartevents", EVENTS, optional=KNOWN_AT).filter(pl.col("itemid").is_in(items))
    keep_events(events, cohort.stays, file, source=tables.path("chartevents"), window_hours=options.vitals_window_hours)
    return summarise(
        file,
        VITALS,
        options.vital_summaries,
        num_rows=cohort.stays.height,
        what="vital",
        window=options.vitals_window_hours,
    )
