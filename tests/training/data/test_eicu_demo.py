"""The eICU demo: its label rule, its leaks and, where the table is there, its counts."""

import json
from pathlib import Path

import polars as pl
import pytest

from export.__main__ import main as export
from service.bundle.__main__ import main as bundle_command
from training.__main__ import main as train
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


@pytest.mark.slow
def test_from_the_table_to_predictions(shared_data: Path, tmp_path: Path) -> None:
    """Labs, physiology, codes as text and charted text: fit, export, and a risk for every row of 600 through the bundle."""
    table, run, bundle, out = (tmp_path / name for name in ("rows.parquet", "run", "bundle", "scored.jsonl"))
    everything = pl.read_parquet(shared_data / "data" / "eicu_demo_mortality" / "eicu_demo_mortality.parquet")
    everything.head(600).write_parquet(table)
    short = ("train.epochs=1", "train.num_bootstraps=5", "objective.decomposition.min_steps=0", "model.hidden_dim=8")
    small = (
        "model.encoders.default.num_bins=4",
        *(f"data.modalities.{m}.text.max_features=20" for m in ("charted", "diagnosis")),
    )
    overrides = [part for value in (f"data.path={table}", *short, *small) for part in ("--set", value)]
    assert train(["fit", str(RECIPE), "--out", str(run), *overrides]) == 0
    assert export([str(run), "--out", str(bundle), "--attribution-points", "0"]) == 0
    assert bundle_command(["predict", str(bundle), str(table), "--out", str(out), "--provider", "cpu"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == 600
    assert {answer["status"] for answer in answers} == {"ok"}
    assert [expert["name"] for expert in answers[0]["explanation"]["experts"]] == [
        *("unique:labs", "unique:physiology", "unique:diagnosis", "unique:charted"),
        *("synergy", "redundancy"),
    ]
