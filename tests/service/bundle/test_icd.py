"""ICD codes in one vocabulary: categories, Charlson comorbidities, chapters."""

import pytest

from service.bundle.icd import icd_groups


@pytest.mark.parametrize(
    ("code", "groups"),
    [
        ("icd10:I50.9", ("icd10:I50", "charlson:heart_failure", "chapter:circulatory")),
        ("ICD10:i509", ("icd10:I50", "charlson:heart_failure", "chapter:circulatory")),
        ("icd9:428.0", ("icd9:428", "charlson:heart_failure", "chapter:circulatory")),
        ("icd9:0389", ("icd9:038", "chapter:infectious")),
        ("icd9:E8889", ("icd9:E888", "chapter:external_cause")),
        ("icd9:V420", ("icd9:V42", "charlson:renal", "chapter:health_status")),
        ("icd10:V892XXA", ("icd10:V89", "chapter:external_cause")),
        ("icd10:E8881", ("icd10:E88", "chapter:endocrine")),
        ("icd10:D50.0", ("icd10:D50", "chapter:blood")),
        ("icd10:D49", ("icd10:D49", "chapter:neoplasms")),
        ("icd9:25040", ("icd9:250", "charlson:diabetes_with_complications", "chapter:endocrine")),
        ("icd10:E11.9", ("icd10:E11", "charlson:diabetes", "chapter:endocrine")),
        ("icd10:C7A1", ("icd10:C7A", "chapter:neoplasms")),
        ("icd9:1985", ("icd9:198", "charlson:metastatic", "chapter:neoplasms")),
        ("icd9:173.0", ("icd9:173", "chapter:neoplasms")),
        ("icd10:Z51.11", ("icd10:Z51", "chapter:health_status")),
        ("icd10:H34.0", ("icd10:H34", "charlson:cerebrovascular", "chapter:eye")),
    ],
)
def test_a_code_is_in_its_groups(code: str, groups: tuple[str, ...]) -> None:
    """Comorbidities and chapters are the same words in both editions."""
    assert groups == icd_groups(code)


@pytest.mark.parametrize(
    "code", ["I50.9", "428.0", "icd11:BD10", "snomed:42343007", "", "icd10:", "icd10:I", "icd9:42", "icd9:I50", "icd10:428"]
)
def test_a_code_that_cannot_be_placed_is_refused(code: str) -> None:
    """E8881 is a fall in one edition and an obesity syndrome in the other: without its edition a code means nothing."""
    with pytest.raises(ValueError, match=r"edition|look like"):
        icd_groups(code)


def test_the_two_editions_agree_on_comorbidities() -> None:
    """Every comorbidity can be had from either edition."""
    pairs = {
        "410.1": "I21.4",
        "571.2": "K70.3",
        "572.2": "K72.9",
        "042": "B20",
        "342.9": "G81.9",
        "585.6": "N18.6",
        "496": "J44.9",
    }
    for old, new in pairs.items():
        assert icd_groups(f"icd9:{old}")[1] == icd_groups(f"icd10:{new}")[1]


def test_a_code_may_count_as_two_comorbidities() -> None:
    """Hypertensive heart and kidney disease with both failures is both, as in the published tables."""
    assert icd_groups("icd9:404.03") == ("icd9:404", "charlson:heart_failure", "charlson:renal", "chapter:circulatory")
