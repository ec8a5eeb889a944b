"""ICD-9-CM and ICD-10-CM diagnosis codes in one vocabulary of groups.

A code says its edition: `icd9:4280`, `icd10:I50.9`, dots and case as one likes. It belongs to groups of three kinds: its
category (the edition's own three characters; four for ICD-9's external causes), the comorbidities of the Charlson index it
counts as, and its chapter. Comorbidities and chapters have one name in both editions, so that a patient coded in ICD-9 in 2014
and in ICD-10 in 2016 looks alike.

Chapters: the tabular lists of ICD-9-CM and ICD-10-CM (US National Center for Health Statistics). Comorbidities: Quan H,
Sundararajan V, Halfon P et al., "Coding algorithms for defining comorbidities in ICD-9-CM and ICD-10 administrative data",
Medical Care 43(11), 2005, table 1 (enhanced ICD-9-CM and ICD-10).
"""

import re
from bisect import bisect_right
from functools import lru_cache

FHIR_SYSTEMS = {
    "http://hl7.org/fhir/sid/icd-9-cm": "icd9",
    "http://hl7.org/fhir/sid/icd-10-cm": "icd10",
    "http://hl7.org/fhir/sid/icd-10": "icd10",
}
"""How FHIR names the editions."""

_CODE = re.compile(r"(icd9|icd10):([0-9A-Z][0-9A-Z.]*)", re.IGNORECASE)
_SHAPES = {
    "icd9": re.compile(r"[0-9]{3}[0-9]{0,2}|V[0-9]{2}[0-9]{0,2}|E[0-9]{3}[0-9]?"),
    "icd10": re.compile(r"[A-Z][0-9][0-9A-Z]{1,5}"),
}

# First category of each chapter, in order.
_ICD10_CHAPTERS = (
    ("A00", "infectious"), ("C00", "neoplasms"), ("D50", "blood"), ("E00", "endocrine"), ("F00", "mental"), ("G00", "nervous"),
    ("H00", "eye"), ("H60", "ear"), ("I00", "circulatory"), ("J00", "respiratory"), ("K00", "digestive"), ("L00", "skin"),
    ("M00", "musculoskeletal"), ("N00", "genitourinary"), ("O00", "pregnancy"), ("P00", "perinatal"), ("Q00", "congenital"),
    ("R00", "symptoms"), ("S00", "injury"), ("U00", "special"), ("V00", "external_cause"), ("Z00", "health_status"),
)  # fmt: skip
_ICD9_CHAPTERS = (
    ("001", "infectious"), ("140", "neoplasms"), ("240", "endocrine"), ("280", "blood"), ("290", "mental"), ("320", "nervous"),
    ("360", "eye"), ("380", "ear"), ("390", "circulatory"), ("460", "respiratory"), ("520", "digestive"),
    ("580", "genitourinary"), ("630", "pregnancy"),
    ("680", "skin"), ("710", "musculoskeletal"), ("740", "congenital"), ("760", "perinatal"),
    ("780", "symptoms"), ("800", "injury"), ("E00", "external_cause"), ("V01", "health_status"),
)  # fmt: skip

# Prefixes of codes without dots; a-b are all categories from a to b.
_CHARLSON_ICD10 = {
    "myocardial_infarction": "I21 I22 I252",
    "heart_failure": "I099 I110 I130 I132 I255 I420 I425-I429 I43 I50 P290",
    "peripheral_vascular": "I70 I71 I731 I738 I739 I771 I790 I792 K551 K558 K559 Z958 Z959",
    "cerebrovascular": "G45 G46 H340 I60-I69",
    "dementia": "F00-F03 F051 G30 G311",
    "chronic_pulmonary": "I278 I279 J40-J47 J60-J67 J684 J701 J703",
    "rheumatic": "M05 M06 M315 M32-M34 M351 M353 M360",
    "peptic_ulcer": "K25-K28",
    "mild_liver": "B18 K700-K703 K709 K713-K715 K717 K73 K74 K760 K762-K764 K768 K769 Z944",
    "diabetes": "E100 E101 E106 E108-E111 E116 E118-E121 E126 E128-E131 E136 E138-E141 E146 E148 E149",
    "diabetes_with_complications": "E102-E105 E107 E112-E115 E117 E122-E125 E127 E132-E135 E137 E142-E145 E147",
    "hemiplegia": "G041 G114 G801 G802 G81 G82 G830-G834 G839",
    "renal": "I120 I131 N032-N037 N052-N057 N18 N19 N250 Z490-Z492 Z940 Z992",
    "malignancy": "C00-C26 C30-C34 C37-C41 C43 C45-C58 C60-C76 C81-C85 C88 C90-C97",
    "severe_liver": "I850 I859 I864 I982 K704 K711 K721 K729 K765-K767",
    "metastatic": "C77-C80",
    "hiv": "B20-B22 B24",
}
_CHARLSON_ICD9 = {
    "myocardial_infarction": "410 412",
    "heart_failure": "39891 40201 40211 40291 40401 40403 40411 40413 40491 40493 4254-4259 428",
    "peripheral_vascular": "0930 4373 440 441 4431-4439 4471 5571 5579 V434",
    "cerebrovascular": "36234 430-438",
    "dementia": "290 2941 3312",
    "chronic_pulmonary": "4168 4169 490-505 5064 5081 5088",
    "rheumatic": "4465 7100-7104 7140-7142 7148 725",
    "peptic_ulcer": "531-534",
    "mild_liver": "07022 07023 07032 07033 07044 07054 0706 0709 570 571 5733 5734 5738 5739 V427",
    "diabetes": "2500-2503 2508 2509",
    "diabetes_with_complications": "2504-2507",
    "hemiplegia": "3341 342 343 3440-3446 3449",
    "renal": "40301 40311 40391 40402 40403 40412 40413 40492 40493 582 5830-5837 585 586 5880 V420 V451 V56",
    "malignancy": "140-172 174-194 1950-1958 200-208 2386",
    "severe_liver": "4560-4562 5722-5728",
    "metastatic": "196-199",
    "hiv": "042-044",
}


def _by_prefix(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Prefix of a code to the comorbidities it counts as. Ranges run over digits: C7A is not between C77 and C80."""
    found: dict[str, tuple[str, ...]] = {}
    for name, words in table.items():
        for prefix in (prefix for word in words.split() for prefix in _range(word)):
            found[prefix] = (*found.get(prefix, ()), name)
    return found


def _range(word: str) -> list[str]:
    first, _, last = word.partition("-")
    letter = first[:1] if first[0].isalpha() else ""
    digits = len(first) - len(letter)
    numbers = range(int(first[len(letter) :]), int((last or first)[len(letter) :]) + 1)
    return [f"{letter}{number:0{digits}}" for number in numbers]


_CHARLSON = {"icd9": _by_prefix(_CHARLSON_ICD9), "icd10": _by_prefix(_CHARLSON_ICD10)}
_CHAPTERS = {"icd9": _ICD9_CHAPTERS, "icd10": _ICD10_CHAPTERS}


@lru_cache(maxsize=1 << 16)  # there are about 90,000 codes, and people send any text
def icd_groups(code: str) -> tuple[str, ...]:
    """The groups of one code, the narrowest first: icd10:I50, charlson:heart_failure, chapter:circulatory of `icd10:I50.9`.

    Raises ValueError for a code that does not say its edition or that no code of its edition can look like.
    """
    match = _CODE.fullmatch(code.strip())
    if match is None:
        raise ValueError("must say its edition, as in icd10:I50.9 or icd9:428.0")
    edition, bare = match[1].lower(), match[2].upper().replace(".", "")
    if _SHAPES[edition].fullmatch(bare) is None:
        raise ValueError(f"must look like a code of {'ICD-9-CM' if edition == 'icd9' else 'ICD-10-CM'}")
    category = bare[: 4 if edition == "icd9" and bare[0] == "E" else 3]
    table = _CHARLSON[edition]
    comorbidities = (f"charlson:{name}" for end in (3, 4, 5) if end <= len(bare) for name in table.get(bare[:end], ()))
    return (f"{edition}:{category}", *comorbidities, f"chapter:{_chapter(edition, category)}")


def _chapter(edition: str, category: str) -> str:
    chapters = _CHAPTERS[edition]
    starts = [start for start, _ in chapters]
    return chapters[max(bisect_right(starts, category) - 1, 0)][1]
