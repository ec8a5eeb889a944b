"""From the unit of a measurement to the unit of a feature, both in UCUM; a conversion that would be a guess is refused.

Equal units need nothing. Others go through ucumvert and pint, which are imported at the first use: half a second.
Mass and amount are converted for the substances of `service.clinical.analytes`; equivalents (`meq/L`) only by a known valence.
"""

import math
import re
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from service.clinical.analytes import Analyte

_LOCK = Lock()  # units of one registry know nothing of another's, and two threads would make two
_DIGITS = 12
_PLAIN = re.compile(r"[!-~]{1,48}")
_LONG_NUMBER = re.compile(r"[0-9]{4}")  # an exponent that would take long to compute
_EQUIVALENT = re.compile(r"(?<![A-Za-z\[])([munp]?)eq(?![A-Za-z\]])")


class UnitError(ValueError):
    """A unit that cannot be converted. The text names units, never a value."""


def convert(value: float, source: str, target: str, analyte: Analyte | None = None) -> float:
    """`value` in `source` as it is in `target`. Raises `UnitError`."""
    if source == target:
        return value
    try:
        with _LOCK:
            slope, offset = _line(source, target, analyte)
    except ArithmeticError:  # units of a hundred digits
        raise UnitError(f"{_shown(source)} cannot be converted to {_shown(target)}") from None
    converted = slope * value + offset
    if not math.isfinite(converted):
        raise UnitError(f"the number becomes too large in {_shown(target)}")
    return float(f"{converted:.{_DIGITS}g}")  # 98.6 [degF] is 37 Cel, not 36.9999999999988


def prepare() -> None:
    """Load what conversions need, so that no client waits half a second for it."""
    with _LOCK:
        _registry()


@lru_cache(maxsize=1024)
def _line(source: str, target: str, analyte: Analyte | None) -> tuple[float, float]:
    """Slope and offset of a conversion: every one is linear, and only temperatures have an offset."""
    source_moles, target_moles = _as_moles(source, analyte), _as_moles(target, analyte)
    factor = target_moles[1] / source_moles[1]
    one, other = _parse(source_moles[0]), _parse(target_moles[0])
    if one.dimensionality == other.dimensionality:
        zero, unity = (_magnitude(number, one, other) for number in (0.0, 1.0))
        return (unity - zero) * factor, zero * factor
    return _by_molar_mass(one, other, source, target, analyte) * factor, 0.0


def _as_moles(unit: str, analyte: Analyte | None) -> tuple[str, float]:
    """A unit of equivalents in moles, and how many equivalents are a mole; any other unit as it is."""
    if not _EQUIVALENT.search(unit):
        return unit, 1.0
    if analyte is None or analyte.valence is None:
        raise UnitError(f"{_shown(unit)} depends on the valence of the ion, which is not known here")
    return _EQUIVALENT.sub(r"\1mol", unit), float(analyte.valence)


def _by_molar_mass(one: Any, other: Any, source: str, target: str, analyte: Analyte | None) -> float:
    if analyte is not None and analyte.molar_mass is not None:
        registry = _registry()
        molar = registry.Quantity(analyte.molar_mass, "g/mol")
        for factor in (molar, 1 / molar):
            quantity = registry.Quantity(1.0, one) * factor
            if quantity.dimensionality == other.dimensionality:
                return float(quantity.to(other).magnitude)
    raise UnitError(f"{_shown(source)} cannot be converted to {_shown(target)}")


def _magnitude(number: float, one: Any, other: Any) -> float:
    return float(_registry().Quantity(number, one).to(other).magnitude)


def _parse(unit: str) -> Any:
    if not _PLAIN.fullmatch(unit) or _LONG_NUMBER.search(unit):
        raise UnitError(f"{_shown(unit)} is no UCUM code that can be converted")
    try:
        return _registry().from_ucum(unit)
    except Exception:  # a grammar's and a registry's many kinds of it
        raise UnitError(f"{_shown(unit)} is no UCUM code that can be converted") from None


def _shown(unit: str) -> str:
    return unit if _PLAIN.fullmatch(unit) else "the unit"


@cache
def _registry() -> Any:
    from ucumvert import PintUcumRegistry

    return PintUcumRegistry()
