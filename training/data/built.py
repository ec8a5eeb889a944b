"""What a data set answers whose rows are made from tables, as the options of a recipe say."""

from dataclasses import dataclass

import polars as pl

from training.data.modalities import Facts


@dataclass(frozen=True, slots=True)
class BuiltData:
    """Rows with their label, and what their columns are."""

    frame: pl.DataFrame  # the label, ids to group by, and columns that may be features
    facts: Facts  # of columns that need some
    notes: tuple[str, ...]  # who was left out, what was dropped or converted, what to beware of
