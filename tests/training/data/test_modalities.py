"""Columns named by pattern, and what a data set says of the columns that it makes."""

from pathlib import Path
from typing import Any

import pytest

from service.bundle.features import NumericFeature
from tests.training.small_data import recipe, small_table, write_data
from training.data.config import ModalityConfig
from training.data.dataset import load_dataset
from training.data.modalities import ColumnFacts, table_modalities
from training.errors import DataError, RecipeError

COLUMNS = ("id", "lab_b", "lab_a", "age", "lab_a_count", "sex")


def completed(facts: dict[str, ColumnFacts] | None = None, never: frozenset[str] = frozenset(), **config: Any) -> ModalityConfig:
    made = table_modalities({"m": ModalityConfig(**config)}, COLUMNS, facts or {}, never=never)
    return made["m"]


@pytest.mark.parametrize(
    ("named", "columns"),
    [
        (("lab_*",), ("lab_b", "lab_a", "lab_a_count")),
        (("age", "lab_?"), ("age", "lab_b", "lab_a")),
        (("lab_a", "lab_*"), ("lab_a", "lab_b", "lab_a_count")),
        (("lab_[a]",), ("lab_a",)),
        (("height",), ("height",)),  # not a pattern: told later, when the table has no such column
    ],
)
def test_a_pattern_stands_for_columns_in_the_tables_order(named: tuple[str, ...], columns: tuple[str, ...]) -> None:
    """Each column once, where it is first named."""
    assert completed(numeric=named).numeric == columns


def test_a_column_with_a_patterns_name_is_itself() -> None:
    """A column called `a[1]` means that column."""
    made = table_modalities({"m": ModalityConfig(numeric=("a[1]",))}, ("a1", "a[1]"), {}, never=())
    assert made["m"].numeric == ("a[1]",)


def test_a_pattern_that_matches_nothing_is_told() -> None:
    """A misspelt pattern would otherwise make a modality of nothing."""
    with pytest.raises(DataError, match=r"modality m: labs_\* matches none of the 5 columns that may be features"):
        completed(never=frozenset({"id"}), numeric=("labs_*",))


def test_a_pattern_never_takes_the_label(tmp_path: Path) -> None:
    """Label, group, split and excluded columns match no pattern."""
    modalities = {"all": {"categorical": ["*"]}, "labs": {"numeric": ["crea", "sod"]}}
    changes = {"data.exclude": ["note"], "data.group": "patient"}
    dataset = load_dataset(recipe(changes, modalities=modalities).data, write_data(tmp_path), seed=0)
    names = [feature.name for feature in dataset.schema.modalities[0].features]
    assert names == [c for c in small_table().columns if c not in {"outcome", "note", "patient"}]


def test_what_the_data_set_says_need_not_be_repeated() -> None:
    """Unit, LOINC code, summary and look-back of each column; what the recipe says wins, and counts of nothing stay unsaid."""
    facts = {
        "lab_a": ColumnFacts(loinc=("2160-0",), unit="mg/dL", summary="last", lookback_hours=48.0),
        "lab_b": ColumnFacts(loinc=("2951-2",), unit="meq/L", summary="last", lookback_hours=24.0),
        "sex": ColumnFacts(loinc=("46098-0",)),
    }
    made = completed(facts, numeric=("lab_?", "age"), categorical=("sex",), units={"lab_a": "g/L"}, loinc={"lab_b": "2947-0"})
    assert made.units == {"lab_a": "g/L", "lab_b": "meq/L"}
    assert made.loinc == {"lab_a": ("2160-0",), "lab_b": ("2947-0",), "sex": ("46098-0",)}
    assert made.summaries == {"lab_a": "last", "lab_b": "last"}
    assert [made.lookback(column) for column in ("lab_a", "lab_b", "age")] == [48.0, 24.0, None]


def test_one_look_back_of_the_recipe_is_that_of_all() -> None:
    """A number stands for every numeric column, whatever the data set says."""
    facts = {"lab_a": ColumnFacts(lookback_hours=48.0)}
    made = completed(facts, numeric=("lab_a", "lab_b"), lookback_hours=12.0)
    assert [made.lookback(column) for column in made.numeric] == [12.0, 12.0]


def test_look_backs_may_differ_by_column(tmp_path: Path) -> None:
    """A recipe may say one per column; it stands in the schema."""
    labs = {"numeric": ["c*a", "sod"], "lookback_hours": {"crea": 24.0}, "units": {"crea": "mg/dL"}}
    schema = load_dataset(recipe({"data.modalities.labs": labs}).data, write_data(tmp_path), seed=0).schema
    crea, sod = schema.modalities[schema.names.index("labs")].features
    assert isinstance(crea, NumericFeature)
    assert isinstance(sod, NumericFeature)
    assert (crea.lookback_hours, crea.unit, sod.lookback_hours) == (24.0, "mg/dL", None)


def test_a_unit_of_no_column_is_told() -> None:
    """At once where no pattern could match it, else when the table is known."""
    with pytest.raises(RecipeError, match=r"units are given for \['crea'\]"):
        recipe({"data.modalities.labs": {"numeric": ["lab_*"], "units": {"crea": "mg/dL"}}})
    with pytest.raises(DataError, match=r"modality m: .*units are given for \['lab_z'\]"):
        completed(numeric=("lab_*",), units={"lab_z": "mg/dL"})
