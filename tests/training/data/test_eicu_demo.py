"""The eICU demo: its label rule, its leaks and, where the table is there, its counts."""

from pathlib import Path

import polars as pl
import pytest

from training.data.dataset import load_dataset
from training.data.eicu_demo import LEAKS, death_after_first_day
from training.data.source import load_source
from training.errors import DataError
from training.recipe import load_recipe

RECIPE = Path("training/recipes/eicu_demo.toml")


def test_only_stays_of_a_day_or_more_are_kept() -> None:
    """Kept: in hospital 1,440 minutes after admission or later, outcome known."""
    frame = pl.DataFrame({"died_in_hospital": [1, 0, 1, None, 0], "hospitaldischargeoffset": [1440, 9000, 1439, 5000, None]})
    died, kept = death_after_first_day(frame)
    assert kept.to_list() == [True, True, False, False, False]
    assert died.filter(kept).to_list() == [1, 0]


@pytest.mark.parametrize("column", sorted(LEAKS))
def test_what_is_known_later_is_no_feature(column: str, tmp_path: Path) -> None:
    """The outcome, the discharge times and the published score are refused as features before anything is read."""
    recipe = load_recipe(RECIPE, [f'data.modalities.labs.numeric=["{column}"]'])
    with pytest.raises(DataError, match=f"modality labs uses {column} as a feature, which is known only after the outcome"):
        load_source(recipe.data, tmp_path)


def test_the_recipe_reads_the_table(shared_data: Path) -> None:
    """1,895 stays, 135 deaths; five folds test every stay once, and no patient is on two sides."""
    path = shared_data / "data" / "eicu_demo_mortality" / "eicu_demo_mortality.parquet"
    recipe = load_recipe(RECIPE, [f"data.path={path}"])
    dataset = load_dataset(recipe.data, RECIPE.parent.absolute(), seed=0)
    assert (len(dataset.target), int(dataset.target.sum())) == (1895, 135)
    assert dataset.schema.names == ("labs", "physiology", "diagnosis", "charted")
    assert dataset.notes == ("254 of 2149 rows dropped by the label rule death_after_first_day",)
