import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.bundle.manifest import TaskInfo
from tests.training import small_model
from tests.training.small_data import ALL_MODALITIES, recipe, write_data
from training.checkpoint import load_checkpoint
from training.data.dataset import load_dataset
from training.errors import DataError, RecipeError, RunError, TrainingError
from training.inference import predict
from training.objectives.config import ObjectiveConfig
from training.recipe import load_recipe
from training.run import class_weights, fit
from training.tasks import make_task


def test_a_run_leaves_its_four_files(rich_run: Path) -> None:
    """checkpoint.pt, metrics.json, report.html and recipe.json; no training state and nothing half-written."""
    assert {p.name for p in rich_run.iterdir()} == {
        "checkpoint.pt",
        "metrics.json",
        "report.html",
        "recipe.json",
        "explanations.npz",
    }


def test_metrics_json_says_what_the_model_does(rich_run: Path) -> None:
    """Metrics and explanation of both held-out splits, provenance, a typical record, reference and history, as strict JSON."""
    document = json.loads((rich_run / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(f"holds {name}"))
    assert set(document["splits"]) == {"validation", "test"}
    for part in document["splits"].values():
        assert part["num_rows"] == 24
        assert part["metrics"]["auroc"]["low"] <= part["metrics"]["auroc"]["value"] <= part["metrics"]["auroc"]["high"]
        assert len(part["explanation"]["experts"]) == 6
    assert document["provenance"]["num_rows"] == {"train": 72, "validation": 24, "test": 24}
    assert [entry["epoch"] for entry in document["history"]] == [0, 1]
    checkpoint = load_checkpoint(rich_run)
    assert checkpoint.schema.encode(document["example"]).missing == ()
    assert set(document["reference"]["missing_rate"]) == {
        f"{m.name}.{f.name}" for m in checkpoint.schema.modalities for f in m.features
    }


def test_the_checkpoint_answers_as_the_metrics_say(small_run: Path) -> None:
    """The saved model, loaded, has the test metrics that were written, calibration included."""
    checkpoint = load_checkpoint(small_run)
    dataset = load_dataset(recipe().data, small_run.parent, seed=0)
    arrays, target = dataset.part("test")
    output = predict(checkpoint.model, checkpoint.schema, arrays)
    wanted = json.loads((small_run / "metrics.json").read_text())["splits"]["test"]["metrics"]["log_loss"]["value"]
    assert -np.log(output.prediction[np.arange(24), target]).mean() == pytest.approx(wanted, abs=1e-6)
    assert not torch.equal(checkpoint.model.calibration.scale, torch.ones(2))
    assert checkpoint.provenance["num_rows"]["validation"] == 24


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    """On data whose outcome creatinine and one code decide, the test AUROC is far above chance."""
    write_data(tmp_path)
    changes = {
        "train.epochs": 12,
        "train.patience": 12,
        "train.num_bootstraps": 0,
        "train.batch_size": 16,
        "train.ema_decay": 0.9,
    }
    evaluations = fit(recipe(changes, modalities=ALL_MODALITIES), tmp_path, tmp_path / "run")
    assert evaluations["test"].metrics["auroc"].value > 0.85


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"model.num_heads": 3}, RecipeError), ({"model.encoders": {"default": {"kind": "cnn"}}}, RecipeError),
     ({"train.selection": "mae"}, RecipeError),
     ({"train.device": "cuda:99"}, RecipeError), ({"data.label": "nothing"}, DataError),
     ({"objective.class_weights": [1.0, 2.0, 3.0]}, RecipeError), ({"data.labels": ["a", "a"]}, RecipeError),
     ({"data.modalities.signal": {"array": "none.npy"}}, DataError)],
)  # fmt: skip
def test_a_mistake_leaves_no_folder(tmp_path: Path, changes: dict[str, Any], error: type[TrainingError]) -> None:
    """Whatever is wrong with recipe or data is found before the run folder is made."""
    write_data(tmp_path)
    with pytest.raises(error) as found:
        fit(recipe(changes), tmp_path, tmp_path / "run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    """A folder that holds anything is not written to, unless it is resumed."""
    write_data(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="run: is not empty; add --resume to continue that run"):
        fit(recipe(), tmp_path, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_only_an_unfinished_run_of_the_same_recipe_is_resumed(small_run: Path, tmp_path: Path) -> None:
    """A finished run and a run of another recipe are refused; an empty folder is a new run."""
    with pytest.raises(RunError, match="this run is complete; nothing to resume"):
        fit(recipe(), small_run.parent, small_run, resume=True)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe({"train.epochs": 9}).model_dump_json(indent=1))
    with pytest.raises(RunError, match="was started with another recipe; use another folder or the same recipe"):
        fit(recipe(), small_run.parent, folder, resume=True)
    (folder / "recipe.json").unlink()
    assert set(fit(recipe(), small_run.parent, folder, resume=True)) == {"validation", "test"}


def test_class_weights() -> None:
    """None, the numbers given, or inverse frequencies whose mean over rows is 1."""
    target, task = np.array([0, 0, 0, 1]), make_task(small_model.TASK)

    def weights(value: Any) -> torch.Tensor | None:
        return class_weights(ObjectiveConfig.model_validate({"class_weights": value}), task, target)

    assert weights(None) is None
    assert weights((0.25, 0.75)).tolist() == [0.25, 0.75]  # type: ignore[union-attr]
    balanced = weights("balanced")
    assert balanced is not None
    np.testing.assert_allclose(balanced, [4 / 6, 2.0])
    assert balanced[torch.from_numpy(target)].mean().item() == pytest.approx(1.0)


def test_balanced_weights_of_several_labels() -> None:
    """Rows without a label per row with it, so that both weigh the same over all rows; a label of no row has a number too."""
    target = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    task = make_task(TaskInfo(kind="multilabel", labels=("a", "b", "c"), outcome="labels"))
    np.testing.assert_allclose(task.balanced_weights(target), [3.0, 1 / 3, 8.0], rtol=1e-6)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0, 1.0]])
def test_a_class_must_weigh_something(weights: list[float]) -> None:
    """A batch of rows that weigh nothing has no loss."""
    with pytest.raises(RecipeError, match=r"class_weights.*0: Input should be greater than 0"):
        load_recipe(Path("training/recipes/support2.toml"), [f"objective.class_weights={weights}"])


@pytest.mark.parametrize(
    "override",
    ['model.encoders.labs={kind="gru", compat="released"}', 'model.fusion_options={residual="released"}'],
)
def test_the_released_forward_is_for_imported_checkpoints(override: str) -> None:
    """Training it anew would repeat the released code's bugs."""
    with pytest.raises(RecipeError, match="= released is for imported checkpoints"):
        load_recipe(Path("training/recipes/support2.toml"), [override])
