"""SUPPORT2: 9,105 seriously ill hospital patients, five US centres, 1989-94. Owns its label rule and its leak list.

Source: the public-use data of the SUPPORT study (Knaus WA, Harrell FE, Lynn J et al., "The SUPPORT prognostic model:
objective estimates of survival for seriously ill hospitalized adults", Annals of Internal Medicine 122, 1995), kept by
Vanderbilt University's Department of Biostatistics and listed in the UCI repository as number 880 under CC BY 4.0.
The shipped file holds 40 of its 48 columns.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from training.data.tables import numbers

PATH = Path(__file__).with_name("support2.csv.gz")

# Outcome, or known only later: never features.
LEAKS = frozenset({"death", "d.time", "hospdead", "slos", "charges", "totcst", "totmcst", "avtisst", "sfdm2", "dnr", "dnrday"})
_DAYS = 365


def one_year_mortality(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Death within 365 days of enrolment, and which rows are known.

    A patient last seen alive before day 365 has no label and is not kept (65 patients, all seen to day 344 at least).
    """
    died, days = numbers(frame, "death") == 1, numbers(frame, "d.time")
    within = died & (days <= _DAYS)
    return within.cast(pl.Int8), within | (days >= _DAYS)


LABEL_RULES: Mapping[str, Callable[[pl.DataFrame], tuple[pl.Series, pl.Series]]] = {"one_year_mortality": one_year_mortality}
