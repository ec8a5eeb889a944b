"""What a bundle says of its explanations: typed, optional, and a few lines for a person."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.bundle.__main__ import main
from service.bundle.store import open_bundle
from service.bundle.validity import ExplanationValidity, describe_validity
from tests.tiny_bundle import write_tiny_bundle

ORDER: dict[str, Any] = {
    "aopc": {"value": 0.9},
    "random": 0.5,
    "best": 1.0,
    "same_order": 0.7,
    "score": {"value": 0.8, "low": 0.75, "high": 0.85},
    "curve": [1, 0.1, 0],
    "random_curve": [1, 0.5, 0],
    "best_curve": [1, 0, 0],
}
WHOLE: dict[str, Any] = {
    "split": "test",
    "num_rows": 500,
    "hidden_by": "learned token",
    "objective": "decomposition",
    "matching": {"contributions": 0.8, "whole": 0.99},
    "deletion": ORDER,
    "insertion": {**ORDER, "score": None},
    "shapley": {"spearman": {"value": 0.6}, "pearson": {"value": 0.7}, "top": {"value": 0.9}, "sign": {"value": 0.8}},
    "interactions": {
        "share": 0.03,
        "mean": 0.1,
        "synergy": {"value": 0.52},
        "redundancy": {"value": 0.4},
        "expected": None,
        "pairs": [{"modalities": ["labs", "history"], "mean": 0.1, "mean_absolute": 0.2}],
    },
    "randomised": {"num_models": 20, "spearman": {"value": 0.01, "low": -0.05, "high": 0.07}},
    "seeds": {
        "seeds": [0, 1, 2],
        "num_rows": 500,
        "spearman_rows": 0.5,
        "same_dominant": 0.8,
        "same_dominant_by_chance": 0.6,
        "spearman_mean": None,
    },
    "notes": ["something was not gone through"],
}


def checked_bundle(folder: Path, validity: dict[str, Any] | None) -> Path:
    """The tiny bundle, saying this of its explanations."""
    path = write_tiny_bundle(folder / "bundle").path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "explanation_validity": validity}))
    return path


def test_show_tells_how_far_to_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each check, with the values that say what is good and what is chance."""
    assert main(["show", str(checked_bundle(tmp_path, WHOLE))]) == 0
    shown = capsys.readouterr().out
    for words in (
        "experts say their parts of the evidence: R2 0.80, of their sum 0.99",
        "modalities by contribution: deletion 0.80 (0.75 to 0.85), insertion undefined (1 best order, 0 chance)",
        "Shapley values: rank correlation 0.60, first modality 0.90",
        "interactions: synergy 0.52, redundancy 0.40 (rank correlation, 0 none)",
        "random weights: rank correlation 0.01 (-0.05 to 0.07) (0 is right)",
        "3 seeds: same dominant expert 0.80 (chance 0.60)",
        "something was not gone through",
    ):
        assert f"  explained    {words}" in shown


def test_a_bundle_may_know_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No field, null, or the version before: it opens, and show says nothing."""
    path = checked_bundle(tmp_path, None)
    assert open_bundle(path).manifest.explanation_validity is None
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["explanation_validity"]
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1}))
    assert open_bundle(path).manifest.explanation_validity is None
    assert main(["show", str(path)]) == 0
    assert "  explained " not in capsys.readouterr().out
    assert describe_validity(None) == []


def test_only_what_was_checked_is_told() -> None:
    """Nothing but the notes where nothing else could be done."""
    document = {key: WHOLE[key] for key in ("split", "num_rows", "hidden_by", "notes")}
    assert describe_validity(ExplanationValidity.model_validate(document)) == ["  explained    something was not gone through"]


def test_names_of_the_published_objective_are_aims() -> None:
    """Where nobody said what an expert is to contribute, its name is not to be taken for a finding."""
    document = {key: WHOLE[key] for key in ("split", "num_rows", "hidden_by")} | {"objective": "paper"}
    (line,) = describe_validity(ExplanationValidity.model_validate(document))
    assert "published objective: an expert's name is an aim, not a finding" in line


def test_unknown_figures_and_nan_are_refused() -> None:
    """A figure nobody has a meaning for is not passed on, and JSON has no NaN."""
    with pytest.raises(ValidationError):
        ExplanationValidity.model_validate({**WHOLE, "beauty": 1})
    with pytest.raises(ValidationError):
        ExplanationValidity.model_validate({**WHOLE, "randomised": {"num_models": 2, "spearman": {"value": float("nan")}}})
