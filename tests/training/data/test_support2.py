from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.training.small_data import recipe
from training.data.dataset import load_dataset
from training.data.source import load_source
from training.data.support2 import LEAKS, PATH, one_year_mortality
from training.errors import DataError
from training.recipe import load_recipe

RECIPE = Path(__file__).parents[3] / "training" / "recipes" / "support2.toml"


def test_support2_has_the_published_counts() -> None:
    """9,105 patients, 9,040 with known one-year status, 55.8 % of them dead, divided 70/15/15."""
    assert pl.read_csv(PATH, infer_schema=False).height == 9105
    config = load_recipe(RECIPE)
    dataset = load_dataset(config.data, RECIPE.parent, seed=0)
    assert len(dataset.target) == 9040
    assert round(float(dataset.target.mean()), 3) == 0.558
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 6328, "validation": 1356, "test": 1356}
    assert dataset.notes == ("65 of 9105 rows dropped by the label rule one_year_mortality",)
    assert dataset.task.labels == ("alive", "dead")
    assert dataset.schema.names == ("labs", "demographics", "diagnosis")


def test_the_label_is_death_within_365_days() -> None:
    """Day 365 counts as within; alive at day 364 is unknown, alive at day 365 a survivor; gaps are unknown."""
    frame = pl.DataFrame({"death": ["1", "1", "0", "0", "1", "0"], "d.time": ["365", "366", "364", "365", "3", ""]})
    label, kept = one_year_mortality(frame)
    known = [(value if keep else None) for value, keep in zip(label, kept, strict=True)]
    assert known == [1, 0, None, 0, 1, None]


@pytest.mark.parametrize("column", sorted(LEAKS))
def test_outcomes_are_never_features(column: str) -> None:
    """A column known only after the outcome is refused as a feature, by name."""
    modalities = {"a": {"numeric": ["age", column]}, "b": {"numeric": ["meanbp"]}}
    changes = {"data.path": None, "data.name": "support2", "data.label": "one_year_mortality"}
    with pytest.raises(
        DataError, match=rf"modality a uses {column} as a feature, which is known only after the outcome \(leak\)"
    ):
        load_source(recipe(changes, modalities=modalities).data, RECIPE.parent)


def test_leaks_cannot_hide_in_codes_or_text() -> None:
    """The leak list holds for every kind of feature."""
    modalities = {"a": {"text": {"column": "death"}}, "b": {"numeric": ["meanbp"]}}
    changes = {"data.path": None, "data.name": "support2", "data.label": "one_year_mortality"}
    with pytest.raises(DataError, match="modality a uses death"):
        load_source(recipe(changes, modalities=modalities).data, RECIPE.parent)


def test_the_recipe_covers_every_permitted_column() -> None:
    """A column of the file is a feature, an outcome, a comparator or the coarser dzclass; nothing is forgotten."""
    config = load_recipe(RECIPE).data
    used = {column for modality in config.modalities.values() for column in modality.columns}
    columns = set(pl.read_csv(PATH, infer_schema=False).columns)
    assert columns - used - LEAKS - set(config.exclude) == {"dzclass"}
    assert used <= columns


def test_another_file_of_the_data_set_follows_the_same_rule(tmp_path: Path) -> None:
    """name with path reads the user's own copy, label rule included."""
    head = pl.read_csv(PATH, infer_schema=False).head(400)
    head.write_csv(tmp_path / "mine.csv")
    changes = {"data.path": "mine.csv", "data.name": "support2", "data.label": "one_year_mortality"}
    modalities = {"a": {"numeric": ["age"]}, "b": {"numeric": ["meanbp"]}}
    source = load_source(recipe(changes, modalities=modalities).data, tmp_path)
    label, kept = one_year_mortality(head)
    np.testing.assert_array_equal(source.frame["one_year_mortality"], label.filter(kept))
