"""What is known of laboratory and charted items by itemid: a name, a LOINC code, a unit, and what a living person can have.

LOINC codes of vital signs: the mapping of the MIMIC code repository (Johnson et al., mimic-iv/mapping). Limits are wide on
purpose: outside of them a number is an error of the clerk or the device, not an illness.
"""

from dataclasses import dataclass

_PER_CENT = (0.0, 100.0)


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something measured, and the items that measure it."""

    name: str  # part of a column's name
    items: tuple[int, ...]
    loinc: tuple[str, ...] = ()  # the closest first
    unit: str | None = None  # UCUM
    lower: float | None = None  # plausible values are from here
    upper: float | None = None  # to here


def _lab(item: int, name: str, loinc: str, unit: str | None, limits: tuple[float, float]) -> Quantity:
    return Quantity(name, (item,), tuple(loinc.split()), unit, *limits)


LABS = (
    _lab(50802, "base_excess", "11555-0", "meq/L", (-50, 50)),
    _lab(50806, "chloride_whole_blood", "2069-3", "meq/L", (40, 200)),
    _lab(50808, "calcium_ionized", "1994-3", "mmol/L", (0.2, 5)),
    _lab(50809, "glucose_whole_blood", "2339-0", "mg/dL", (5, 3000)),
    _lab(50813, "lactate", "32693-4 2524-7", "mmol/L", (0.05, 50)),
    _lab(50817, "oxygen_saturation", "20564-1", "%", _PER_CENT),
    _lab(50818, "pco2", "11557-6", "mm[Hg]", (3, 250)),
    _lab(50820, "ph", "11558-4", "[pH]", (6.3, 8.3)),
    _lab(50821, "po2", "11556-8", "mm[Hg]", (5, 800)),
    _lab(50822, "potassium_whole_blood", "6298-4", "meq/L", (0.8, 20)),
    _lab(50824, "sodium_whole_blood", "2947-0", "meq/L", (80, 220)),
    _lab(50852, "hemoglobin_a1c", "4548-4", "%", (2, 25)),
    _lab(50861, "alt", "1742-6", "[IU]/L", (0, 50000)),
    _lab(50862, "albumin", "1751-7", "g/dL", (0.2, 10)),
    _lab(50863, "alkaline_phosphatase", "6768-6", "[IU]/L", (0, 20000)),
    _lab(50868, "anion_gap", "1863-0 33037-3", "meq/L", (-20, 80)),
    _lab(50878, "ast", "1920-8", "[IU]/L", (0, 50000)),
    _lab(50882, "bicarbonate", "1963-8 2028-9", "meq/L", (1, 80)),
    _lab(50883, "bilirubin_direct", "1968-7", "mg/dL", (0, 100)),
    _lab(50885, "bilirubin_total", "1975-2", "mg/dL", (0, 100)),
    _lab(50889, "c_reactive_protein", "1988-5", "mg/L", (0, 1000)),
    _lab(50893, "calcium_total", "17861-6", "mg/dL", (1, 30)),
    _lab(50902, "chloride", "2075-0", "meq/L", (40, 200)),
    _lab(50910, "creatine_kinase", "2157-6", "[IU]/L", (0, 500000)),
    _lab(50911, "creatine_kinase_mb", "13969-1", "ng/mL", (0, 5000)),
    _lab(50912, "creatinine", "2160-0 38483-4", "mg/dL", (0.02, 60)),
    _lab(50924, "ferritin", "2276-4", "ng/mL", (0, 200000)),
    _lab(50931, "glucose", "2345-7", "mg/dL", (5, 3000)),
    _lab(50952, "iron", "2498-4", "ug/dL", (0, 2000)),
    _lab(50954, "lactate_dehydrogenase", "2532-0", "[IU]/L", (0, 100000)),
    _lab(50956, "lipase", "3040-3", "[IU]/L", (0, 50000)),
    _lab(50960, "magnesium", "19123-9", "mg/dL", (0.1, 20)),
    _lab(50963, "nt_probnp", "33762-6", "pg/mL", (0, 500000)),
    _lab(50970, "phosphate", "2777-1", "mg/dL", (0.1, 40)),
    _lab(50971, "potassium", "2823-3", "meq/L", (0.8, 20)),
    _lab(50976, "protein_total", "2885-2", "g/dL", (0.5, 20)),
    _lab(50983, "sodium", "2951-2", "meq/L", (80, 220)),
    _lab(50993, "thyrotropin", "3016-3", "u[IU]/mL", (0, 1000)),
    _lab(51000, "triglycerides", "2571-8", "mg/dL", (1, 20000)),
    _lab(51003, "troponin_t", "6598-7", "ng/mL", (0, 200)),
    _lab(51006, "urea_nitrogen", "3094-0 6299-2", "mg/dL", (0.5, 500)),
    _lab(51007, "uric_acid", "3084-1", "mg/dL", (0.05, 100)),
    _lab(51133, "lymphocytes_absolute", "731-0", "10*3/uL", (0, 1000)),
    _lab(51144, "bands", "764-1", "%", _PER_CENT),
    _lab(51146, "basophils", "706-2", "%", _PER_CENT),
    _lab(51200, "eosinophils", "713-8", "%", _PER_CENT),
    _lab(51214, "fibrinogen", "3255-7", "mg/dL", (5, 3000)),
    _lab(51221, "hematocrit", "4544-3 20570-8", "%", (2, 85)),
    _lab(51222, "hemoglobin", "718-7", "g/dL", (0.5, 30)),
    _lab(51237, "inr", "6301-6 34714-6", None, (0.2, 40)),
    _lab(51244, "lymphocytes", "736-9", "%", _PER_CENT),
    _lab(51248, "mch", "785-6", "pg", (5, 80)),
    _lab(51249, "mchc", "786-4", "g/dL", (10, 60)),
    _lab(51250, "mcv", "787-2", "fL", (30, 200)),
    _lab(51254, "monocytes", "5905-5", "%", _PER_CENT),
    _lab(51256, "neutrophils", "770-8", "%", _PER_CENT),
    _lab(51265, "platelets", "777-3", "10*3/uL", (0, 5000)),
    _lab(51274, "prothrombin_time", "5902-2", "s", (2, 250)),
    _lab(51275, "ptt", "14979-9 3173-2", "s", (5, 300)),
    _lab(51277, "rdw", "788-0", "%", (5, 60)),
    _lab(51279, "red_cells", "789-8", "10*6/uL", (0.2, 12)),
    _lab(51301, "white_cells", "6690-2 26464-8", "10*3/uL", (0, 1500)),
    _lab(51491, "ph_urine", "2756-5", "[pH]", (3, 10)),
    _lab(51498, "specific_gravity_urine", "2965-2", None, (0.9, 1.2)),
    _lab(52069, "basophils_absolute", "704-7", "10*3/uL", (0, 1000)),
    _lab(52073, "eosinophils_absolute", "711-2", "10*3/uL", (0, 1000)),
    _lab(52074, "monocytes_absolute", "742-7", "10*3/uL", (0, 1000)),
    _lab(52075, "neutrophils_absolute", "751-8", "10*3/uL", (0, 1000)),
    _lab(52172, "rdw_sd", "21000-5", "fL", (10, 200)),
)

# Arterial and cuff pressures count as one. A verbal response of 1 may be that of an intubated patient.
VITALS = (
    Quantity("heart_rate", (220045,), ("8867-4",), "/min", 1, 300),
    Quantity("systolic_pressure", (220050, 220179, 225309), ("8480-6", "76534-7"), "mm[Hg]", 1, 400),
    Quantity("diastolic_pressure", (220051, 220180, 225310), ("8462-4", "76535-4"), "mm[Hg]", 1, 300),
    Quantity("mean_pressure", (220052, 220181, 225312), ("8478-0", "76536-2"), "mm[Hg]", 1, 300),
    Quantity("respiratory_rate", (220210, 224690), ("9279-1",), "/min", 1, 100),
    Quantity("oxygen_saturation", (220277,), ("59408-5", "2708-6"), "%", 1, 100),
    Quantity("temperature", (223761, 223762), ("8310-5",), "Cel", 15, 46),
    Quantity("gcs_eyes", (220739,), ("9267-6",), "{score}", 1, 4),
    Quantity("gcs_verbal", (223900,), ("9270-0",), "{score}", 1, 5),
    Quantity("gcs_motor", (223901,), ("9268-4",), "{score}", 1, 6),
)
