"""Units and the shipped knowledge of items agree with each other."""

import re

import pytest

from training.data.mimic_iv.items import LABS, VITALS, Quantity
from training.data.mimic_iv.units import conversion, is_ucum, ucum


@pytest.mark.parametrize(
    ("spelling", "unit"),
    [("mg/dL", "mg/dL"), ("K/uL", "10*3/uL"), ("m/uL", "10*6/uL"), ("mEq/L", "meq/L"), ("IU/L", "[IU]/L"), ("sec", "s"),
     ("mm Hg", "mm[Hg]"), (" mmHg ", "mm[Hg]"), (" ", None), (None, None), ("furlong", "furlong")],
)  # fmt: skip
def test_spellings_become_ucum(spelling: str | None, unit: str | None) -> None:
    """Blanks are nothing; what is not known stays and is no UCUM unit."""
    assert ucum(spelling) == unit
    assert is_ucum(unit) == (unit not in {None, "furlong"})


@pytest.mark.parametrize(
    ("name", "unit", "target", "expected"),
    [
        ("glucose", "mmol/L", "mg/dL", (18.016, 0.0)),
        ("sodium", "mmol/L", "meq/L", (1.0, 0.0)),
        ("calcium_total", "mmol/L", "meq/L", None),  # two charges
        ("lactate", "mg/dL", "mmol/L", None),
        ("anything", None, "mg/dL", (1.0, 0.0)),
        ("anything", "mg/dL", None, None),
        ("alt", "U/L", "[IU]/L", (1.0, 0.0)),
    ],
)
def test_conversions_are_of_one_substance(
    name: str, unit: str | None, target: str | None, expected: tuple[float, float] | None
) -> None:
    """A factor belongs to a substance unless it holds for all; unknown ones are not guessed."""
    assert conversion(name, unit, target) == expected


def test_fahrenheit_is_exact_where_water_freezes_and_boils() -> None:
    """32 F is 0 C, 212 F is 100 C."""
    factor, offset = conversion("temperature", "[degF]", "Cel") or (0.0, 0.0)
    assert (32 * factor + offset, 212 * factor + offset) == (pytest.approx(0), pytest.approx(100))


def _check_digit(code: str) -> int:
    """LOINC's own (mod 10, doubling every second digit from the right)."""
    digits = code.partition("-")[0]
    doubled = [int(digit) * 2 if place % 2 == 0 else int(digit) for place, digit in enumerate(reversed(digits))]
    return -sum(number // 10 + number % 10 for number in doubled) % 10


def test_shipped_items_are_well_formed() -> None:
    """Names are parts of column names, limits are in order, codes pass LOINC's check digit, units are UCUM."""
    for quantity in (*LABS, *VITALS):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", quantity.name)
        assert quantity.lower < quantity.upper, quantity.name
        assert quantity.unit in {None, "[pH]", "{score}"} or is_ucum(quantity.unit), quantity.name
        assert quantity.loinc, quantity.name
        assert [code for code in quantity.loinc if int(code[-1]) != _check_digit(code)] == []


@pytest.mark.parametrize("quantities", [LABS, VITALS], ids=["labs", "vitals"])
def test_no_item_and_no_name_is_there_twice(quantities: tuple[Quantity, ...]) -> None:
    """One item, one quantity, one column; and no LOINC code says two of them."""
    for told in (
        [q.name for q in quantities],
        [i for q in quantities for i in q.items],
        [c for q in quantities for c in q.loinc],
    ):
        assert len(set(told)) == len(told)
