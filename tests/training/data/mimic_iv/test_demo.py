"""The real open demo of MIMIC-IV, from its tables to predictions of an exported bundle."""

import json
from pathlib import Path

import numpy as np
import pytest

from export.__main__ import main as export
from service.bundle.__main__ import main as bundle_command
from service.bundle.features import NumericFeature
from service.bundle.store import open_bundle
from training.__main__ import main as train
from training.data.dataset import load_dataset
from training.data.mimic_iv import MimicOptions, cohort_flow, read
from training.data.source import load_source
from training.recipe import load_recipe

RECIPE = Path("training/recipes/mimic_iv.toml")
YEAR = "one_year_mortality"
SMALL = ("data.options.index=all", "data.modalities.diagnoses.codes.min_count=5", "data.split.seed=1")


@pytest.fixture
def demo(shared_data: Path) -> Path:
    root = shared_data / "data" / "mimic_iv_demo"
    if not root.is_dir():
        pytest.skip(f"{root} is not there: the demo is no part of the project")
    return root


@pytest.mark.parametrize(
    ("index", "label", "num_rows", "num_events"),
    [("all", YEAR, 260, 52), ("last", YEAR, 95, 23), ("all", "thirty_day_mortality", 260, 9)],
)
def test_its_counts(demo: Path, index: str, label: str, num_rows: int, num_events: int) -> None:
    """275 admissions, 260 of them end alive; deaths within a year of 52, within thirty days of 9."""
    num_admissions, flow = cohort_flow(demo, MimicOptions(index=index), label)
    assert num_admissions == 275
    assert sum(step.num_excluded for step in flow) == 275 - num_rows
    frame = read(demo, MimicOptions(index=index), [label]).frame
    assert (frame.height, int(frame[label].sum())) == (num_rows, num_events)


def test_deaths_in_hospital(demo: Path) -> None:
    """15 admissions end in death; one of those is over within the first day."""
    frame = read(demo, MimicOptions(index="all", predict_at=24.0), ["in_hospital_mortality"]).frame
    assert (frame.height, int(frame["in_hospital_mortality"].sum())) == (245, 14)


def test_the_recipe_reads_it(demo: Path) -> None:
    """Features carry unit, LOINC code and look-back that the recipe does not say; no patient is on two sides of the split."""
    recipe = load_recipe(RECIPE, [f"data.root={json.dumps(str(demo))}", *SMALL])
    dataset = load_dataset(recipe.data, RECIPE.parent.absolute(), seed=0)
    labs, demographics, diagnoses = dataset.schema.modalities
    assert len(labs.features) == 40
    creatinine = labs.by_name["lab_creatinine"][0]
    assert isinstance(creatinine, NumericFeature)
    assert (creatinine.unit, creatinine.loinc[0], creatinine.lookback_hours) == ("mg/dL", "2160-0", 48.0)
    assert demographics.by_name["age"][0].loinc == ("30525-0",)
    vocabulary = diagnoses.features[0].vocabulary  # type: ignore[union-attr]  # a vocabulary of groups
    assert {"charlson:heart_failure", "chapter:circulatory", "icd10:I50"} <= set(vocabulary)
    subjects = read(demo, MimicOptions(index="all"), [YEAR]).frame["subject_id"].to_numpy()
    sides = [set(subjects[rows]) for rows in dataset.splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(np.unique(subjects))


def test_rows_made_before_are_a_table(demo: Path, tmp_path: Path) -> None:
    """With a path in place of the root the rows are read as they are, and the same features found."""
    made = read(demo, MimicOptions(index="all"), [YEAR]).frame
    made.write_parquet(tmp_path / "rows.parquet")
    recipe = load_recipe(RECIPE, [f"data.path={tmp_path / 'rows.parquet'}"])
    source = load_source(recipe.data, tmp_path)
    assert source.frame.equals(made)
    assert len(source.modalities["labs"].numeric) == 40


@pytest.mark.slow
def test_from_tables_to_predictions(demo: Path, tmp_path: Path) -> None:
    """fit, export and predict through the bundle, by their commands; every row of the data set gets a risk."""
    run, bundle, out = tmp_path / "run", tmp_path / "bundle", tmp_path / "scored.jsonl"
    model = ("model.hidden_dim=8", "model.encoders.default.num_bins=4", "objective.decomposition.min_steps=0")
    short = ("train.epochs=1", "train.num_bootstraps=5", *model)
    data = (
        f"data.root={json.dumps(str(demo))}",
        *SMALL,
        "data.options.lab_items=8",
        "data.modalities.diagnoses.codes.min_count=40",
    )
    overrides = [part for value in (*data, *short) for part in ("--set", value)]
    assert train(["fit", str(RECIPE), "--out", str(run), *overrides]) == 0
    notes = json.loads((run / "metrics.json").read_text())["provenance"]["notes"]
    assert notes[:2] == ["275 admissions", "15 left out: died in hospital or on the day of discharge; 260 left"]
    assert export([str(run), "--out", str(bundle), "--attribution-points", "0"]) == 0
    options = MimicOptions(index="all", labs_window_hours=48.0, lab_items=8)
    rows = read(demo, options, [YEAR]).frame
    rows.write_parquet(tmp_path / "rows.parquet")
    assert bundle_command(["predict", str(bundle), str(tmp_path / "rows.parquet"), "--out", str(out), "--provider", "cpu"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == rows.height == 260
    assert {answer["status"] for answer in answers} == {"ok"}
    assert all(0 < answer["probability"] < 1 for answer in answers)
    example = open_bundle(bundle).manifest.example.record
    assert example["diagnoses"]["diagnoses"]
