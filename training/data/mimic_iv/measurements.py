"""From events, one row per measurement, to columns, one row per stay: which count, in which unit, and summarised how.

Knows nothing of laboratories or wards. The events of a table are gone through once, as a stream; those of the cohort's windows
are kept in a parquet file, and everything else reads that file, a part of the stays at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from service.bundle.features import Summary
from training.data.mimic_iv.items import Quantity
from training.data.mimic_iv.tables import Columns, reading
from training.data.mimic_iv.units import conversion, is_ucum, ucum
from training.data.modalities import ColumnFacts

EVENTS: Columns = {
    "subject_id": pl.Int64,
    "hadm_id": pl.Int64,
    "itemid": pl.Int64,
    "charttime": pl.Datetime,
    "valuenum": pl.Float64,
    "valueuom": pl.String,
}
KNOWN_AT: Columns = {"storetime": pl.Datetime}  # when a result was there to be read, in tables that say so
_EVENTS_AT_ONCE = 5_000_000  # summarised together

_LAST = pl.col("value").filter(pl.col("charttime") == pl.col("charttime").max()).mean()  # of several at one time their mean
_FIRST = pl.col("value").filter(pl.col("charttime") == pl.col("charttime").min()).mean()
_SUMMARIES: Mapping[Summary, pl.Expr] = {
    "last": _LAST,
    "first": _FIRST,
    "minimum": pl.col("value").min(),
    "maximum": pl.col("value").max(),
    "mean": pl.col("value").mean(),
    "count": pl.len().cast(pl.Float64),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Columns, row-aligned with the stays, what they are, and what was dropped on the way."""

    frame: pl.DataFrame
    facts: Mapping[str, ColumnFacts]
    notes: tuple[str, ...]


def keep_events(events: pl.LazyFrame, stays: pl.DataFrame, file: Path, *, source: Path, window_hours: float | None) -> None:
    """Write the events of every stay's window to `file`: row, itemid, charttime, valuenum, valueuom, hadm_id.

    With `window_hours` these are the patient's events in so many hours before the prediction, whatever the admission. Without,
    those from arrival to the prediction that name the stay's admission or, as a quarter of laboratory results do, none.
    An event whose time cannot be read is kept, without it, to be counted.
    """
    begins = pl.col("starts") if window_hours is None else pl.col("predicted") - pl.duration(seconds=round(window_hours * 3600))
    windows = stays.lazy().select("row", "subject_id", "predicted", begins.alias("begins"), stay="hadm_id")
    known = "storetime" in events.collect_schema().names()
    in_window = pl.col("charttime").is_between(pl.col("begins"), pl.col("predicted")) | pl.col("charttime").is_null()
    if known:
        in_window &= (pl.col("storetime") <= pl.col("predicted")).fill_null(value=True)
    if window_hours is None:
        in_window &= (pl.col("hadm_id") == pl.col("stay")).fill_null(value=True)
    kept = (
        events.filter(pl.col("valuenum").is_finite())
        .join(windows, on="subject_id")
        .filter(in_window)
        .select("row", pl.col("itemid").cast(pl.Int32), "charttime", "valuenum", "valueuom", "hadm_id")
    )
    with reading(source):
        kept.sink_parquet(file, compression="zstd")


def summarise(
    file: Path, quantities: Sequence[Quantity], summaries: Sequence[Summary], *, num_rows: int, what: str, window: float | None
) -> Measured:
    """A column `<what>_<name>` per quantity for its last value, `<what>_<name>_<summary>` for others; null where none is known.

    A quantity without any value is no column.
    """
    units, dropped = _unit_table(file, quantities, what)
    cells = {summary: np.full((num_rows, len(quantities)), 0.0 if summary == "count" else np.nan) for summary in summaries}
    implausible, seen = np.zeros(len(quantities), np.int64), set[int]()
    for part in _parts(file, num_rows):
        values = _values(part, units).collect()
        plausible = values.filter("plausible")
        np.add.at(implausible, values.filter(~pl.col("plausible"))["quantity"].to_numpy(), 1)
        summed = plausible.group_by("row", "quantity").agg(_SUMMARIES[summary].alias(summary) for summary in summaries)
        seen.update(summed["quantity"])
        for summary, array in cells.items():
            array[summed["row"].to_numpy(), summed["quantity"].to_numpy()] = summed[summary].to_numpy()
    columns, facts = {}, {}
    unknown = [place for place in range(len(quantities)) if place not in seen]
    for summary, array in cells.items():
        for place, quantity in enumerate(quantities):
            if place in unknown:
                continue
            name = f"{what}_{quantity.name}" + ("" if summary == "last" else f"_{summary}")
            columns[name] = pl.Series(array[:, place], nan_to_null=True)
            facts[name] = _facts(quantity, units, place, summary, window)
    names = [quantity.name for quantity in quantities]
    gone = tuple(f"{what}_{names[place]}: no column, since no value is left" for place in unknown)
    notes = (*_counted(file, what), *dropped, *_implausible(what, names, implausible), *gone)
    return Measured(pl.DataFrame(columns), facts, notes)


def count_stays(file: Path, num_rows: int) -> pl.DataFrame:
    """By itemid in how many of the `num_rows` stays there is a number (`num_stays`), the commonest first."""
    counts = [
        part.select("row", "itemid").unique().group_by("itemid").agg(num_stays=pl.len()).collect()
        for part in _parts(file, num_rows)
    ]
    counted = pl.concat(counts).group_by("itemid").agg(pl.col("num_stays").sum())
    return counted.sort("num_stays", "itemid", descending=[True, False])


def _parts(file: Path, num_rows: int) -> Iterator[pl.LazyFrame]:
    """The events, a range of stays at a time."""
    events = pl.scan_parquet(file).filter(pl.col("charttime").is_not_null())
    num_events = int(events.select(pl.len()).collect(engine="streaming").item())
    size = max(1, num_rows * _EVENTS_AT_ONCE // max(num_events, 1))
    for start in range(0, num_rows, size):
        yield events.filter(pl.col("row").is_between(start, start + size - 1))


def _values(events: pl.LazyFrame, units: pl.DataFrame) -> pl.LazyFrame:
    """row, quantity (position), charttime, value in the quantity's unit, and whether it is plausible."""
    value = pl.col("valuenum") * pl.col("factor") + pl.col("offset")
    within = pl.col("value").is_between(pl.col("lower"), pl.col("upper"))
    return (
        events.join(units.lazy(), on=["itemid", "valueuom"], nulls_equal=True)
        .filter(pl.col("factor").is_not_null())
        .select("row", "quantity", "charttime", "lower", "upper", value=value)
        .select("row", "quantity", "charttime", "value", plausible=within)
    )


def _unit_table(file: Path, quantities: Sequence[Quantity], what: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """By item and unit how its values become a quantity's; and notes on what was converted and what cannot be."""
    place_of = {item: place for place, quantity in enumerate(quantities) for item in quantity.items}
    counts = (
        pl.scan_parquet(file)
        .filter(pl.col("itemid").is_in(list(place_of)))
        .group_by("itemid", "valueuom")
        .agg(num_values=pl.len())
        .collect(engine="streaming")
        .sort("num_values", "itemid", "valueuom", descending=[True, False, False])
    )
    targets = _targets(counts, quantities, place_of)
    rows, notes = [], []
    for item, spelling, num_values in counts.iter_rows():
        place = place_of[item]
        quantity, unit, target = quantities[place], ucum(spelling), targets[place]
        found = conversion(quantity.name, unit, target)
        if found != (1.0, 0.0):
            done = "dropped" if found is None else "converted"
            notes.append(f"{what}_{quantity.name}: {num_values} values in {unit} {done}; its unit is {target or 'not known'}")
        factor, offset = found or (None, None)
        lower = -np.inf if quantity.lower is None else quantity.lower
        upper = np.inf if quantity.upper is None else quantity.upper
        rows.append((item, spelling, place, factor, offset, float(lower), float(upper), target))
    schema = {"itemid": pl.Int32, "valueuom": pl.String, "quantity": pl.Int32, "factor": pl.Float64, "offset": pl.Float64}
    limits = {"lower": pl.Float64, "upper": pl.Float64, "unit": pl.String}
    return pl.DataFrame(rows, schema=schema | limits, orient="row"), tuple(notes)


def _targets(counts: pl.DataFrame, quantities: Sequence[Quantity], place_of: Mapping[int, int]) -> dict[int, str | None]:
    """The unit of each quantity: the one it is known by, else that of most of its values."""
    targets = {place: quantity.unit for place, quantity in enumerate(quantities) if quantity.unit is not None}
    for item, spelling, _ in counts.iter_rows():  # the commonest first
        if (unit := ucum(spelling)) is not None:
            targets.setdefault(place_of[item], unit)
    return {place: targets.get(place) for place in range(len(quantities))}


def _facts(quantity: Quantity, units: pl.DataFrame, place: int, summary: Summary, window: float | None) -> ColumnFacts:
    told = units.filter(pl.col("quantity") == place)["unit"].drop_nulls()
    unit = quantity.unit or (told[0] if len(told) and is_ucum(told[0]) else None)
    return ColumnFacts(loinc=quantity.loinc, unit=None if summary == "count" else unit, summary=summary, lookback_hours=window)


def _counted(file: Path, what: str) -> tuple[str, ...]:
    """How many measurements there are, how many were put to a stay by their time alone, and how many have no time."""
    has_time = pl.col("charttime").is_not_null()
    num_kept, num_by_time, num_bad = (
        pl.scan_parquet(file)
        .select(has_time.sum(), kept=(has_time & pl.col("hadm_id").is_null()).sum(), bad=(~has_time).sum())
        .collect(engine="streaming")
        .row(0)
    )
    found = (
        f"{what}: {num_kept} measurements in the windows, {num_by_time} of them without hadm_id and placed by subject and time"
    )
    return (found, *((f"{what}: {num_bad} measurements dropped: their time cannot be read",) if num_bad else ()))


def _implausible(what: str, names: Sequence[str], counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[str, ...]:
    if not counts.sum():
        return ()
    told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True) if count)
    return (f"{what}: {counts.sum()} values dropped outside physiological limits ({told})",)
