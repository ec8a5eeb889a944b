"""eICU-CRD Demo v2.0.1, one row per first unit stay with what was charted on the first day. Not shipped.

Source: the eICU Collaborative Research Database Demo (Pollard et al., Scientific Data 2018; PhysioNet, ODbL 1.0): 2,520
unit stays in 186 US hospitals, 2014-15. The table read here holds the first unit stay of each hospital stay with a
known outcome: the APACHE variables of day 1 (missing where -1), diagnoses, text and treatments charted in the first
1,440 minutes. "Text" is what was picked from lists, not prose.
"""

from collections.abc import Callable, Mapping

import polars as pl

from training.data.tables import numbers

# Outcome, or known only later (the offsets), or a comparator (the published score).
LEAKS = frozenset({"died_in_hospital", "unitdischargeoffset", "hospitaldischargeoffset", "apache_iva_pred"})
_LANDMARK_MINUTES = 1440


def death_after_first_day(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Death in hospital, for the stays still in hospital 24 hours after unit admission.

    The fair task: everything a model may see was charted by then. Who had left or died before is not kept.
    """
    died, leaves = numbers(frame, "died_in_hospital"), numbers(frame, "hospitaldischargeoffset")
    return (died == 1).cast(pl.Int8), died.is_not_null() & (leaves >= _LANDMARK_MINUTES).fill_null(value=False)


LabelRule = Callable[[pl.DataFrame], tuple[pl.Series, pl.Series]]
LABEL_RULES: Mapping[str, LabelRule] = {"death_after_first_day": death_after_first_day}
