"""Units as MIMIC-IV spells them, as UCUM spells them (ucum.org), and how one becomes another."""

# Spellings are compared without surrounding blanks; what is not here is kept as it is and is no UCUM unit.
_UCUM = {
    "%": "%", "g/dL": "g/dL", "g/L": "g/L", "mg/dL": "mg/dL", "mg/L": "mg/L", "ug/dL": "ug/dL", "ug/mL": "ug/mL",
    "ng/mL": "ng/mL", "ng/dL": "ng/dL", "pg/mL": "pg/mL", "ug/L": "ug/L", "pg": "pg", "fL": "fL", "mEq/L": "meq/L",
    "mmol/L": "mmol/L", "umol/L": "umol/L", "mOsm/kg": "mosm/kg", "K/uL": "10*3/uL", "m/uL": "10*6/uL", "#/uL": "/uL",
    "/uL": "/uL", "IU/L": "[IU]/L", "U/L": "U/L", "IU/mL": "[IU]/mL", "uIU/mL": "u[IU]/mL", "mIU/mL": "m[IU]/mL",
    "U/mL": "U/mL", "sec": "s", "mm Hg": "mm[Hg]", "mmHg": "mm[Hg]", "mm/hr": "mm/h", "#/hpf": "/[HPF]", "/hpf": "/[HPF]",
    "#/lpf": "/[LPF]", "L/min": "L/min", "bpm": "/min", "insp/min": "/min", "\N{DEGREE SIGN}F": "[degF]",
    "\N{DEGREE SIGN}C": "Cel", "units": "{units}", "Ratio": "{ratio}", "ratio": "{ratio}",
}  # fmt: skip

# (from, to): factor, for any substance.
_FACTORS = {
    ("U/L", "[IU]/L"): 1.0, ("g/L", "g/dL"): 0.1, ("mg/dL", "g/dL"): 0.001, ("mg/L", "mg/dL"): 0.1, ("mg/dL", "mg/L"): 10.0,
    ("ug/L", "ng/mL"): 1.0, ("ng/dL", "ng/mL"): 0.01, ("/uL", "10*3/uL"): 0.001, ("{units}", "[pH]"): 1.0,
}  # fmt: skip

# The same for one substance: ions of one charge; molar masses (g/mol) of creatinine 113.12, urea nitrogen 28.01, glucose 180.16,
# bilirubin 584.66, calcium 40.08, magnesium 24.31, phosphorus 30.97; red cells' haemoglobin, whose % are g in 100 mL.
_FACTORS_OF = {
    **{(name, "mmol/L", "meq/L"): 1.0 for name in ("sodium", "potassium", "chloride", "bicarbonate", "anion_gap")},
    ("creatinine", "umol/L", "mg/dL"): 0.011312,
    ("urea_nitrogen", "mmol/L", "mg/dL"): 2.801,
    ("glucose", "mmol/L", "mg/dL"): 18.016,
    ("bilirubin_total", "umol/L", "mg/dL"): 0.058466,
    ("calcium_total", "mmol/L", "mg/dL"): 4.008,
    ("magnesium", "mmol/L", "mg/dL"): 2.431,
    ("phosphate", "mmol/L", "mg/dL"): 3.097,
    ("mchc", "%", "g/dL"): 1.0,
}


def ucum(spelling: str | None) -> str | None:
    """UCUM's spelling of a unit of MIMIC-IV; itself where none is known, None where nothing is said."""
    bare = (spelling or "").strip()
    return _UCUM.get(bare, bare) or None


def is_ucum(unit: str | None) -> bool:
    """Whether a unit that `ucum` answered is one of UCUM."""
    return unit in _UCUM.values()


def conversion(name: str, unit: str | None, target: str | None) -> tuple[float, float] | None:
    """Factor and offset that turn a value in `unit` into one in `target`; None where they are not known.

    A value without a unit is taken to be in the target's: laboratories leave it out where there is only one.
    """
    if unit in {None, target} or target is None:
        return (1.0, 0.0) if unit in {None, target} else None
    if (unit, target) == ("[degF]", "Cel"):
        return 5 / 9, -32 * 5 / 9
    factor = _FACTORS_OF.get((name, unit, target), _FACTORS.get((unit, target)))
    return None if factor is None else (factor, 0.0)
