"""Sweeps: the grid, what is run again and what is not, and the table."""

import csv
import json
from pathlib import Path

import pytest

from training.errors import RecipeError, RunError
from training.recipe import RECIPE_FILE, Recipe
from training.sweep import Setting, parse_grid, parse_seeds, read_variants, runs, sweep

RECIPE = Path("training/recipes/support2.toml")


class CountingFit:
    """Stands for a training run: writes metrics that are known by hand, and remembers what it was asked to run."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.ran: list[tuple[float, int]] = []
        self.stop_after = stop_after

    def __call__(self, recipe: Recipe, folder: Path, out: Path) -> None:
        if len(self.ran) == self.stop_after:
            raise KeyboardInterrupt
        weight, seed = recipe.objective.interaction_weight, recipe.train.seed
        self.ran.append((weight, seed))
        out.mkdir(parents=True)
        (out / RECIPE_FILE).write_text(recipe.model_dump_json())
        metrics = {"auroc": {"value": 0.5 + weight + 0.1 * seed}}
        (out / "metrics.json").write_text(json.dumps({"splits": {"test": {"metrics": metrics}}}))


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_grid_is_every_combination() -> None:
    """Two --vary arguments of two values each make four settings, in the order written."""
    grid = parse_grid(["objective.interaction_weight=0.1,0.2", "train.epochs=1,2"])
    assert [setting.overrides for setting in grid] == [
        ("objective.interaction_weight=0.1", "train.epochs=1"),
        ("objective.interaction_weight=0.1", "train.epochs=2"),
        ("objective.interaction_weight=0.2", "train.epochs=1"),
        ("objective.interaction_weight=0.2", "train.epochs=2"),
    ]


def test_folders_say_what_they_hold() -> None:
    """A run's folder name holds the varied values and the seed, without characters that file systems dislike."""
    grid = parse_grid(['objective.masking="zero"'], [Setting((("variant", "no losses"),), ())])
    assert [setting.folder(3) for setting in grid] == ["no-losses_objective.masking=-zero-_seed-3"]


@pytest.mark.parametrize("argument", ["objective.masking", "train.epochs=", "train.epochs=1,,2"])
def test_a_bad_axis_is_refused(argument: str) -> None:
    """An axis without values is an error that says what was expected."""
    with pytest.raises(RecipeError, match=r"expected section\.key=value,value"):
        parse_grid([argument])


def test_a_key_varied_twice_is_refused() -> None:
    """The same key in two axes would let one of them silently win."""
    with pytest.raises(RecipeError, match=r"twice: train\.epochs"):
        parse_grid(["train.epochs=1", "train.epochs=2"])


VARIANTS = """
vanilla = { model.experts = "single", objective.interaction_weight = 0 }
["simple weights"]
model.reweighting = { kind = "simple" }
train.epochs = 3
[plain]
"""


def test_named_variants_come_from_a_file(tmp_path: Path) -> None:
    """Each table of the file is a row, its values overrides of the recipe; an empty one is the recipe as it is."""
    (tmp_path / "variants.toml").write_text(VARIANTS)
    grid = parse_grid(["train.batch_size=8,16"], read_variants(tmp_path / "variants.toml"))
    assert [setting.overrides for setting in grid[::2]] == [
        ('model.experts="single"', "objective.interaction_weight=0", "train.batch_size=8"),
        ('model.reweighting.kind="simple"', "train.epochs=3", "train.batch_size=8"),
        ("train.batch_size=8",),
    ]
    assert dict(grid[1].values) == {"variant": "vanilla", "train.batch_size": "16"}


@pytest.mark.parametrize(
    ("text", "told"),
    [("a = [", "cannot be read as TOML"), ("a = 1", "a: expected a table of recipe values"), ("", "names no variant")],
)
def test_a_file_of_variants_that_cannot_be_used_is_told(tmp_path: Path, text: str, told: str) -> None:
    """Damaged, of another form, or empty; and no file at all."""
    path = tmp_path / "variants.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told):
        read_variants(path)
    with pytest.raises(RecipeError, match="No such file"):
        read_variants(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["backbones", "baselines", "ablations", "objectives"])
def test_the_shipped_variants_are_recipes(name: str) -> None:
    """Every one is a valid recipe, and no two of a file are the same."""
    settings = read_variants(RECIPE.parent / "variants" / f"{name}.toml")
    recipes = {recipe.model_dump_json() for _, recipe, _ in runs(RECIPE, settings, [0], Path("out"), [])}
    assert len(recipes) == len(settings) >= 2


def test_seeds_may_be_ranges() -> None:
    """Numbers and ranges, each once, in the order written."""
    assert parse_seeds("3,0-2,1") == [3, 0, 1, 2]


@pytest.mark.parametrize("text", ["", "a", "1,", "0.5", "3-1", "-1"])
def test_bad_seeds_are_refused(text: str) -> None:
    """Seeds are whole numbers."""
    with pytest.raises(RecipeError, match="expected whole numbers"):
        parse_seeds(text)


def test_the_table_has_means_and_deviations(tmp_path: Path) -> None:
    """One row per setting with mean and standard deviation over its seeds, as csv and as html."""
    path = sweep(RECIPE, parse_grid(["objective.interaction_weight=0.1,0.2"]), [0, 1], tmp_path, CountingFit())
    first, second = table(path)
    assert first == {"objective.interaction_weight": "0.1", "seeds": "2", "auroc mean": "0.6500", "auroc std": "0.0707"}
    assert second["auroc mean"] == "0.7500"
    assert "<td>0.7500</td>" in (tmp_path / "table.html").read_text()


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Runs that are finished are not run again; the table comes out as if nothing had happened."""
    grid = parse_grid(["objective.interaction_weight=0.1,0.2"])
    with pytest.raises(KeyboardInterrupt):
        sweep(RECIPE, grid, [0, 1], tmp_path, CountingFit(stop_after=3))
    rest = CountingFit()
    path = sweep(RECIPE, grid, [0, 1], tmp_path, rest)
    assert rest.ran == [(0.2, 1)]
    assert [row["seeds"] for row in table(path)] == ["2", "2"]


def test_nothing_starts_when_one_setting_is_wrong(tmp_path: Path) -> None:
    """Every recipe of the grid is checked before the first run."""
    fit = CountingFit()
    with pytest.raises(RecipeError, match=r"interaction_weight"):
        sweep(RECIPE, parse_grid(["objective.interaction_weight=0.1,-1"]), [0], tmp_path, fit)
    assert fit.ran == []


def test_finished_runs_of_another_recipe_are_not_taken_for_these(tmp_path: Path) -> None:
    """The same folder with another number of epochs is refused: a table must not mix budgets."""
    grid = parse_grid(["objective.interaction_weight=0.1"])
    sweep(RECIPE, grid, [0], tmp_path, CountingFit(), overrides=["train.epochs=2"])
    with pytest.raises(RunError, match="holds a finished run of another recipe"):
        sweep(RECIPE, grid, [0], tmp_path, CountingFit(), overrides=["train.epochs=3"])


def test_seeds_are_no_axis() -> None:
    """--seeds sets the seed of every run, so that varying it too would name runs by seeds they do not have."""
    with pytest.raises(RecipeError, match=r"train\.seed: is varied by --seeds alone"):
        runs(RECIPE, parse_grid(["train.seed=5,6"]), [0], Path("out"), [])


def test_settings_that_would_share_a_folder_are_refused() -> None:
    """Names that differ only in characters that folders do not keep."""
    grid = [Setting((("variant", name),), ()) for name in ("a b", "a/b")]
    with pytest.raises(RecipeError, match="share the folder a-b_seed-0"):
        runs(RECIPE, grid, [0], Path("out"), [])


def test_commas_within_brackets_belong_to_a_value() -> None:
    """Two lists of class weights are two values."""
    grid = parse_grid(["objective.class_weights=[1,2],[2, 3.5]"])
    assert [setting.overrides for setting in grid] == [("objective.class_weights=[1,2]",), ("objective.class_weights=[2, 3.5]",)]


@pytest.mark.slow
def test_runs_side_by_side_make_the_same_table(tmp_path: Path) -> None:
    """Two processes: the same runs, the same table; a failure in one of them is told."""
    grid = parse_grid(["objective.interaction_weight=0.1,0.2"])
    alone = sweep(RECIPE, grid, [0, 1], tmp_path / "alone", CountingFit())
    together = sweep(RECIPE, grid, [0, 1], tmp_path / "together", CountingFit(), jobs=2)
    assert together.read_text() == alone.read_text()
    (tmp_path / "taken" / grid[0].folder(0)).mkdir(parents=True)
    with pytest.raises(FileExistsError):
        sweep(RECIPE, grid, [0], tmp_path / "taken", CountingFit(), jobs=2)


def test_a_date_among_variants_is_told(tmp_path: Path) -> None:
    """TOML knows dates, which no value of a recipe is."""
    path = tmp_path / "variants.toml"
    path.write_text("late = { train.epochs = 1979-05-27 }")
    with pytest.raises(RecipeError, match=r"train.epochs: Input should be a valid integer, found '1979-05-27'"):
        runs(RECIPE, parse_grid([], read_variants(path)), [0], tmp_path, ())
