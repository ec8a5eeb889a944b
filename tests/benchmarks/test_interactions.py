"""The interaction benchmark: its lists, its resuming, its tables, and one small run through real training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import interactions
from benchmarks.interaction_scores import score
from benchmarks.interaction_tables import data_table, draw, heatmap_rows, objective_table, summary
from benchmarks.planted_runs import PlantedRun, ceiling, planted_recipe, train_once, write_data
from training.data.dataset import load_dataset
from training.data.planted import PlantedConfig, generate

EXPERTS = ("unique:m1", "unique:m2", "synergy", "redundancy")


def document(data: str, objective: str, seed: int, shares: Any, truth: list[str]) -> dict[str, Any]:
    """What a run with these contribution shares leaves."""
    figures = {"score": 0.9, "ceiling": 1.0, "seconds": 2.0, "data": data, "objective": objective, "seed": seed}
    return figures | score(np.array(shares), truth, EXPERTS)


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    """Two seeds of an xor that is read as redundancy, once with other ranks, and an additive run."""
    rows = [[0.1, 0.2, 0.1, 0.6], [0.2, 0.1, 0.1, 0.6]]
    return [
        document("xor", "paper", 0, [rows[0]] * 2, ["synergy"] * 2),
        document("xor", "paper", 1, [rows[1]] * 2, ["synergy"] * 2),
        document("mixture", "paper", 0, [[0.7, 0.1, 0.1, 0.1]] * 2, ["unique:m1", "synergy"]),
        document("additive", "paper", 0, [[0.5, 0.5, 0.0, 0.0]] * 2, ["", ""]),
    ]


def test_summary(documents: list[dict[str, Any]]) -> None:
    """Two xor runs wrong and half a mixture right: 0.5 / 3; 6 rows, five wrong at 0.6 or 0.7 and one right at 0.7."""
    figures = summary(documents)
    assert figures["right"] == figures["top1"] == pytest.approx(0.5 / 3, abs=1e-4)
    assert figures["mixture_top1"] == 0.5
    assert figures["lowest_group"] == 0.0
    assert figures["true_share"] == pytest.approx((0.1 + 0.1 + 0.4) / 3, abs=1e-4)
    assert figures["ece"] == pytest.approx((4 * 0.6 + abs(1.4 - 1)) / 6, abs=1e-4)
    assert figures["stability"] == pytest.approx(1 / 3, abs=1e-4)  # six pairs: three alike, one not, two tied in one seed
    assert figures["gap"] == pytest.approx(0.1)
    assert figures["equal_share_gap"] == 0


def test_summary_of_additive_data_alone(documents: list[dict[str, Any]]) -> None:
    """Nothing is right or wrong there."""
    figures = summary(documents[3:])
    assert figures["right"] is figures["ece"] is figures["stability"] is None


def test_tables(documents: list[dict[str, Any]]) -> None:
    """One row per objective, and one per data set that says what it is read as."""
    assert objective_table(documents).splitlines()[2].startswith("| paper | 0.167 | 0.167 | 0.500 | 0.000 | 0.200 |")
    lines = data_table(documents).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| xor", "| mixture", "| additive"]
    assert "synergy -> redundancy 0.60" in lines[0]
    assert "additive -> unique:m1 0.50" in lines[2]


def test_heatmap(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    """A row per data set and true expert, of means over seeds; the files are images."""
    rows = heatmap_rows(documents)
    assert [row[:2] for row in rows] == [
        ("xor", "synergy"),
        ("mixture: synergy", "synergy"),
        ("mixture: unique:m1", "unique:m1"),
        ("additive", ""),
    ]
    assert rows[0][2] == pytest.approx({"unique:m1": 0.15, "unique:m2": 0.15, "synergy": 0.1, "redundancy": 0.6})
    draw(documents, [tmp_path / "heatmap.png", tmp_path / "heatmap.svg"])
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "heatmap.svg").read_text().startswith("<?xml")


def test_the_list_covers_what_it_promises() -> None:
    """Two to four modalities, every encoding, noise, label noise, both tasks; the quick part has two modalities."""
    configs = interactions.DATA_SETS.values()
    assert {c.num_modalities for c in configs} == {2, 3, 4}
    assert {c.encoding for c in configs} == {"direct", "rotated", "codebook"}
    assert {c.task for c in configs} == {"classification", "regression"}
    assert {c.family for c in configs} == {"unique", "redundancy", "xor", "and", "parity", "mixture", "additive", "product"}
    assert {c.label_noise > 0 for c in configs} == {True, False}
    assert {c.num_modalities for c in interactions.QUICK_DATA_SETS.values()} == {2}
    assert len({cell.path for cell in all_cells(Path())}) == len(all_cells(Path()))


def all_cells(out: Path) -> list[interactions.Cell]:
    return [interactions.Cell(d, o, s, 0, out) for d in interactions.DATA_SETS for o in interactions.OBJECTIVES for s in (0, 1)]


@pytest.mark.parametrize("objective", interactions.OBJECTIVES)
def test_every_objective_is_a_recipe(objective: str) -> None:
    """For classification and regression."""
    for config in (PlantedConfig(kind="xor"), PlantedConfig(kind="product", task="regression")):
        overrides = interactions.OBJECTIVES[objective]
        recipe = planted_recipe(config, overrides, seed=3)
        assert recipe.train.seed == 3
        assert {key: getattr(recipe.objective, key.removeprefix("objective.")) for key in overrides} == overrides


def test_the_project_reads_the_planted_rows(tmp_path: Path) -> None:
    """Arrays, target and splits come back as they were drawn, three fifths of the rows for training."""
    config = PlantedConfig(kind="mixture", num_rows=100)
    data = generate(config, 0)
    write_data(data, tmp_path)
    dataset = load_dataset(planted_recipe(config, {}, 0).data, tmp_path, seed=0)
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 60, "validation": 15, "test": 25}
    np.testing.assert_array_equal(dataset.target, data.target)
    for name, array in data.arrays.items():
        np.testing.assert_array_equal(dataset.arrays[name], array)


def test_ceiling() -> None:
    """One minus the share of flipped labels; 1 / (1 + 0.5^2) of the variance."""
    rows = np.arange(3000)
    flipped = PlantedConfig(kind="xor", label_noise=0.2)
    assert ceiling(flipped, generate(flipped, 0), rows) == pytest.approx(0.8, abs=0.03)
    noisy = PlantedConfig(kind="product", task="regression", label_noise=0.5)
    assert ceiling(noisy, generate(noisy, 0), rows) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(("kind", "objective"), [("mixture", "no interaction loss"), ("additive", "decomposition")])
def test_a_small_run(kind: str, objective: str) -> None:
    """Real training, of one stage or several, leaves a share per test row and expert, and the rows' truths in the same order."""
    config = PlantedConfig(kind=kind, num_rows=400)
    short = {"train.epochs": 1} | ({"objective.decomposition.min_steps": 0} if objective == "decomposition" else {})
    run = train_once(config, {**short, **interactions.OBJECTIVES[objective]}, seed=0)
    assert run.experts == EXPERTS
    assert run.explanation.share.shape == (100, 4)
    np.testing.assert_allclose(run.explanation.share.sum(axis=1), 1, rtol=1e-5)
    assert list(run.truth) == list(generate(config, 0).truth[300:])
    json.dumps(score(run.explanation.share, run.truth, run.experts))


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its settings have changed since, or its file is damaged."""
    share = np.full((4, 4), 0.25)
    explanation: Any = type("Explanation", (), {"share": share})
    run = PlantedRun(EXPERTS, explanation, np.array(["synergy"] * 4), {"accuracy": 1.0}, 1.0, 0.5)
    monkeypatch.setattr(interactions, "train_once", lambda *_, **__: run)
    cell = interactions.Cell("xor n=2", "paper 0.5", 0, 0, tmp_path)
    assert interactions.finished(cell) is None
    interactions.run_cell(cell)
    found = interactions.finished(cell)
    assert found is not None
    assert found["right"] == {"synergy": False}
    assert not math.isnan(found["score"])
    monkeypatch.setitem(interactions.OBJECTIVES, "paper 0.5", {"objective.kind": "paper", "objective.interaction_weight": 0.6})
    assert interactions.finished(cell) is None
    cell.path.write_text("{")
    assert interactions.finished(cell) is None
