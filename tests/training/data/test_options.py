"""A named data set's own options in a recipe."""

from typing import Any

import pytest

from tests.training.small_data import recipe
from training.data.mimic_iv import MimicOptions
from training.data.source import read_options
from training.errors import RecipeError
from training.recipe import Recipe

NAMED = {"data.name": "mimic_iv", "data.path": None, "data.root": "somewhere"}


def with_options(**options: Any) -> Recipe:
    return recipe(NAMED | {"data.options": options})


def test_options_are_the_data_sets_own() -> None:
    """What the recipe says, and the data set's defaults for the rest."""
    found = read_options(with_options(index="first", predict_at=24, lab_items=[50912, 50971], cache="copies").data)
    assert isinstance(found, MimicOptions)
    assert (found.index, found.predict_at, found.lab_items, str(found.cache)) == ("first", 24.0, (50912, 50971), "copies")
    assert found.min_age == 18


def test_options_of_a_recipe_come_back_from_a_run() -> None:
    """A stored recipe says the same."""
    stored = with_options(index="first", lab_summaries=["last", "count"])
    again = Recipe.model_validate_json(stored.model_dump_json(), strict=True)
    assert again == stored
    assert read_options(again.data) == read_options(stored.data)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"indx": "last"}, "recipe: data.options.indx: is not a key of this section"),
        ({"index": "second"}, "recipe: data.options.index: Input should be 'last', 'first' or 'all', found 'second'"),
        ({"min_admissions": 0}, "recipe: data.options.min_admissions: Input should be greater than 0, found 0"),
        ({"lab_summaries": ["median"]}, "recipe: data.options.lab_summaries.0: Input should be"),
        ({"vitals": "yes"}, "recipe: data.options.vitals: Input should be a valid boolean, found 'yes'"),
    ],
)
def test_options_are_checked_with_the_recipe(options: dict[str, Any], told: str) -> None:
    """Unknown keys and wrong values are told before anything is read, by their place."""
    with pytest.raises(RecipeError) as error:
        with_options(**options)
    assert str(error.value).startswith(told)


def test_every_problem_has_a_line() -> None:
    """Two mistakes are told together."""
    with pytest.raises(RecipeError) as error:
        with_options(indx="last", min_age=-1)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(("name", "what"), [("support2", "data set support2"), (None, "a table of one's own")])
def test_options_where_there_are_none_are_an_error(name: str | None, what: str) -> None:
    """They would otherwise be thought to do something."""
    with pytest.raises(RecipeError, match=f"recipe: data.options: {what} has none, found index"):
        recipe({"data.name": name, "data.options": {"index": "last"}})
