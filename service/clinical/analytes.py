"""Substances that laboratories report by mass in some countries and by amount in others, and what one mole of them weighs.

Molar masses in g/mol from the standard atomic weights (IUPAC 2021), by the conventions of clinical chemistry: urea nitrogen
counts the two nitrogen atoms of a mole of urea, phosphate the phosphorus of a mole of phosphate, triglycerides are counted as
triolein, lactate as lactic acid. Haemoglobin is left out on purpose: some laboratories count its monomer, others its tetramer.

`valence` turns equivalents into moles (1 mol of Ca2+ is 2 eq), which UCUM's own `eq` does not know.
"""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Analyte:
    """One substance: its LOINC codes by mass and by amount, its molar mass, the valence of an ion."""

    name: str
    by_mass: tuple[str, ...] = ()
    by_amount: tuple[str, ...] = ()
    molar_mass: float | None = None  # g/mol
    valence: int | None = None


ANALYTES = (
    Analyte(name="creatinine", by_mass=("2160-0", "38483-4"), by_amount=("14682-9",), molar_mass=113.12),
    Analyte(name="glucose", by_mass=("2345-7",), by_amount=("14749-6",), molar_mass=180.156),
    Analyte(name="glucose in blood", by_mass=("2339-0",), by_amount=("15074-8",), molar_mass=180.156),
    Analyte(name="bilirubin", by_mass=("1975-2", "42719-5"), by_amount=("14631-6",), molar_mass=584.67),
    Analyte(name="urea nitrogen", by_mass=("3094-0", "6299-2"), by_amount=("22664-7",), molar_mass=28.014),
    Analyte(name="urate", by_mass=("3084-1",), by_amount=("14933-6",), molar_mass=168.11),
    Analyte(name="cholesterol", by_mass=("2093-3",), by_amount=("14647-2",), molar_mass=386.66),
    Analyte(name="HDL cholesterol", by_mass=("2085-9",), by_amount=("14646-4",), molar_mass=386.66),
    Analyte(name="triglycerides", by_mass=("2571-8",), by_amount=("14927-8",), molar_mass=885.4),
    Analyte(name="lactate", by_mass=("14118-4",), by_amount=("2524-7",), molar_mass=90.08),
    Analyte(name="phosphate", by_mass=("2777-1",), by_amount=("14879-1",), molar_mass=30.974),
    Analyte(name="calcium", by_mass=("17861-6",), by_amount=("2000-8",), molar_mass=40.078, valence=2),
    Analyte(name="magnesium", by_mass=("19123-9",), by_amount=("2601-3",), molar_mass=24.305, valence=2),
    Analyte(name="sodium", by_amount=("2951-2", "2947-0"), valence=1),
    Analyte(name="potassium", by_amount=("2823-3", "6298-4"), valence=1),
    Analyte(name="chloride", by_amount=("2075-0", "2069-3"), valence=1),
    Analyte(name="bicarbonate", by_amount=("1963-8", "1959-6"), valence=1),
)


@cache
def _by_code() -> dict[str, Analyte]:
    return {code: analyte for analyte in ANALYTES for code in (*analyte.by_mass, *analyte.by_amount)}


def analyte_of(loinc: str) -> Analyte | None:
    """The substance that a LOINC code measures, where it is in the table."""
    return _by_code().get(loinc)


def with_siblings(loinc: tuple[str, ...]) -> tuple[str, ...]:
    """These codes in their order, then those that measure the same substance by amount instead of by mass, or the reverse."""
    known = [analyte for code in loinc if (analyte := analyte_of(code)) is not None and analyte.molar_mass is not None]
    siblings = (code for analyte in known for code in (*analyte.by_mass, *analyte.by_amount))
    own = set(loinc)
    other_kind = [code for code in siblings if code not in own and not _same_kind(code, loinc)]
    return tuple(dict.fromkeys((*loinc, *other_kind)))


def _same_kind(code: str, loinc: tuple[str, ...]) -> bool:
    """Whether an own code already measures the code's substance the same way: by mass, or by amount."""
    analyte = _by_code()[code]
    kinds = analyte.by_mass if code in analyte.by_mass else analyte.by_amount
    return any(own in kinds for own in loinc)
