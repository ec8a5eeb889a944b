import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.bundle import run_material
from service.bundle.validity import ExplanationValidity
from tests.training.small_data import recipe, write_data
from training.__main__ import main
from training.run import fit
from training.validity.rows_file import load_rows
from training.validity.stability import seed_figures


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one recipe: seeds 0 and 1 on one split, seed 2 longer, seed 3 on another split, seed 4 not checked, one expert."""
    folder = write_data(tmp_path_factory.mktemp("seeds"))
    short = {"train.epochs": 1, "train.num_bootstraps": 0, "validity": {"num_bootstraps": 10, "num_randomised": 2}}
    for name, changes in {
        "zero": {"train.seed": 0},
        "one": {"train.seed": 1},
        "longer": {"train.seed": 2, "train.epochs": 2},
        "elsewhere": {"train.seed": 3, "data.split": {"validation": 0.2, "test": 0.2, "seed": 3}},
        "unchecked": {"train.seed": 4, "validity": {"enabled": False}},
        "single": {"train.seed": 5, "model.experts": "single", "objective.interaction_weight": 0},
    }.items():
        fit(recipe({**short, **changes}), folder, folder / name)
    return folder


def test_figures_by_hand() -> None:
    """Two runs, two rows: the first ranked alike, the second the other way round."""
    one, other = np.array([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]]), np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    found = seed_figures([one, other], [0, 7])
    assert (found.seeds, found.num_rows) == ((0, 7), 2)
    assert found.spearman_rows == pytest.approx(0.0)  # the mean of 1 and -1
    assert found.same_dominant == 0.5
    assert found.same_dominant_by_chance == pytest.approx(1.0 * 0.5)
    assert found.spearman_mean == pytest.approx(0.5)  # (0.55, 0.3, 0.15) and (0.45, 0.25, 0.3)
    same = seed_figures([one, one, one], [0, 1, 2])
    assert (same.spearman_rows, same.same_dominant, same.spearman_mean) == (pytest.approx(1), 1, pytest.approx(1))
    assert seed_figures([np.full((2, 3), 1 / 3)] * 2, [0, 1]).spearman_rows is None


def test_seeds_are_compared_and_exported(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the figures and writes them into the first run alone, from where a bundle takes them."""
    for name in ("zero", "one"):
        shutil.copytree(runs / name, tmp_path / name)
    before = json.loads((tmp_path / "zero" / "metrics.json").read_text())
    untouched = (tmp_path / "one" / "metrics.json").read_bytes()
    assert main(["stability", str(tmp_path / "zero"), str(tmp_path / "one")]) == 0
    told = capsys.readouterr().out
    after = json.loads((tmp_path / "zero" / "metrics.json").read_text())
    seeds = after["splits"]["test"]["validity"].pop("seeds")
    assert before["splits"]["test"]["validity"].pop("seeds") is None
    assert before == after
    assert (seeds["seeds"], seeds["num_rows"]) == ([0, 1], 24)
    assert f"the same in {seeds['same_dominant']:.3f} of rows ({seeds['same_dominant_by_chance']:.3f} by chance)" in told
    assert (tmp_path / "one" / "metrics.json").read_bytes() == untouched
    validity = run_material(tmp_path / "zero").validity
    assert validity is not None
    assert validity.seeds is not None
    assert validity.seeds.model_dump(mode="json") == seeds
    assert ExplanationValidity.model_validate(before["splits"]["test"]["validity"]).seeds is None


def test_shares_are_those_of_the_explanation(runs: Path) -> None:
    """The file of rows holds what the dataset-level explanation is made of."""
    rows = load_rows(runs / "zero")
    document = json.loads((runs / "zero" / "metrics.json").read_text())["splits"]["test"]
    means = [expert["contribution_share"]["mean"] for expert in document["explanation"]["experts"]]
    np.testing.assert_allclose(rows.shares(rows.label).mean(axis=0), means, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "told"),
    [(("zero", "zero"), "expected runs of different seeds, found 0, 0"),
     (("zero", "longer"), "longer: expected the recipe of"), (("zero", "longer"), "found another train.epochs"),
     (("zero", "elsewhere"), "elsewhere: expected the recipe of"), (("zero", "elsewhere"), "found another data.split"),
     (("zero", "unchecked"), "unchecked/explanations.npz: no such file; expected a run"),
     (("single", "one"), "single/metrics.json: expected validity figures of the test rows, found none (one expert"),
     (("zero", "absent"), "absent/checkpoint.pt: no such file")],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str], told: str
) -> None:
    """What was expected and what was found, and nothing is written."""
    before = (runs / "zero" / "metrics.json").read_bytes()
    assert main(["stability", *(str(runs / name) for name in names)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert (runs / "zero" / "metrics.json").read_bytes() == before


def test_seeds_that_choose_their_own_rows_are_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With split.seed = run every seed tests on other rows; the remedy is in the error."""
    write_data(tmp_path)
    for seed in (0, 1):
        changes = {"train.epochs": 1, "data.split": {"validation": 0.2, "test": 0.2, "seed": "run"}, "train.seed": seed}
        fit(recipe(changes), tmp_path, tmp_path / str(seed))
    assert main(["stability", str(tmp_path / "0"), str(tmp_path / "1")]) == 1
    assert "train all runs with one split (--set data.split.seed=0; not with folds)" in capsys.readouterr().err


def test_a_damaged_file_of_rows_is_told(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a file is one line, not a traceback."""
    shutil.copytree(runs / "one", tmp_path / "one")
    path = tmp_path / "one" / "explanations.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert main(["stability", str(runs / "zero"), str(tmp_path / "one")]) == 1
    assert "explanations.npz: is damaged (" in capsys.readouterr().err


def test_rows_are_told_apart_by_position_and_target(runs: Path) -> None:
    """One split, one fingerprint, whatever the seed; another split, another."""
    zero, one, elsewhere = (load_rows(runs / name).fingerprint for name in ("zero", "one", "elsewhere"))
    assert zero == one != elsewhere
