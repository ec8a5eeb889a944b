"""What report.html says of how far explanations can be trusted."""

import json
from pathlib import Path

import pytest

from service.bundle.validity import Estimate, ExplanationValidity, OrderFigures
from tests.training.small_data import recipe, write_data
from tests.training.test_report import Page
from training.report.trust import trust_rows
from training.run import fit


def test_the_page_tells_the_run_s_own_figures(small_run: Path) -> None:
    """Every check stands with its figure, its interval, what nothing and what perfection would be, and how to read it."""
    page = Page((small_run / "report.html").read_text())
    validity = ExplanationValidity.model_validate(
        json.loads((small_run / "metrics.json").read_text())["splits"]["test"]["validity"]
    )
    assert validity.deletion is not None
    score = validity.deletion.score
    assert score is not None
    found, nothing, perfect, reading = page.row("deletion score")
    assert found == f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
    assert (nothing, perfect) == ("0", "1")
    assert reading.endswith(".")
    assert validity.resampled is not None
    for expert in validity.resampled.experts:
        share = expert.share
        assert [expert.name, f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"] in page.rows
    for title in ("insertion score", "Shapley values, ranks", "synergy follows interaction", "same with random experts"):
        assert len(page.row(title)) == 4
    assert "#trust" in page.values("a", "href")
    assert "A faithful explanation of a wrong model is wrong about the patient." in page.text
    assert "on 24 test rows" in " ".join(page.text.split())


def test_validation_rows_are_not_checked(small_run: Path) -> None:
    """Test rows alone have the figures: validation rows chose the model."""
    splits = json.loads((small_run / "metrics.json").read_text())["splits"]
    assert "validity" in splits["test"]
    assert "validity" not in splits["validation"]


@pytest.mark.parametrize("experts", ["single", "synergy_redundancy"])
def test_a_model_that_ranks_nothing_says_so_or_nothing(tmp_path: Path, experts: str) -> None:
    """One expert: no section. Without uniqueness experts: the section, and why nothing is ranked."""
    write_data(tmp_path)
    changes = {"model.experts": experts, "train.epochs": 1, "train.num_bootstraps": 0}
    changes |= {"objective.interaction_weight": 0} if experts == "single" else {}
    fit(recipe(changes), tmp_path, tmp_path / "run")
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert ("trust" in page.values("section", "id")) == (experts != "single")
    assert ("Not checked: no expert speaks for one modality" in page.text) == (experts != "single")
    assert ("deletion score" in page.text) is False
    assert (tmp_path / "run" / "explanations.npz").exists() == (experts != "single")


def test_one_order_for_all_rows_stands_on_the_same_scale() -> None:
    """Random 1, best 3, one order 2: half of what can be won; where nothing can be won it is left out."""
    part = {"aopc": Estimate(value=2.5), "random": 1.0, "same_order": 2.0, "score": Estimate(value=0.75)}
    curves = dict.fromkeys(("curve", "random_curve", "best_curve"), (0.0,))

    def reading(best: float) -> str:
        figures = OrderFigures.model_validate({**part, **curves, "best": best})
        validity = ExplanationValidity(split="test", num_rows=9, hidden_by="other rows", deletion=figures, insertion=figures)
        return trust_rows(validity, 2)[0].reading

    assert "the best one order for all rows scores 0.500." in reading(3.0)
    assert reading(1.0).endswith("1 is each row's best.")
