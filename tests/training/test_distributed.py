import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small_data import ALL_MODALITIES, TINY_ENCODER, write_recipe
from training import distributed
from training.checkpoint import load_checkpoint
from training.distributed import choose_device, first_says
from training.errors import RecipeError, RunError
from training.evaluation import read_metrics
from training.recipe import load_recipe
from training.run import fit

RUN_FILES = {"checkpoint.pt", "metrics.json", "report.html", "recipe.json", "explanations.npz"}
PROJECT = Path(__file__).parents[2]
QUIET: dict[str, Any] = {  # nothing drawn but the order of the rows; 72 of them in steps of 71 and 1
    "model.dropout": 0.0, "model.modality_dropout": 0.0, "model.reweighting": {"hidden_dim": 8, "dropout": 0.0},
    "model.encoders": {"default": {**TINY_ENCODER, "noise": 0.0, "dropout": 0.0}}, "objective.masking": "zero",
    "objective.class_weights": "balanced", "train.epochs": 3, "train.batch_size": 71, "train.num_bootstraps": 0,
}  # fmt: skip


def in_two_processes(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 ...` on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Same losses and validation in every epoch, to 1e-5, with class weights, uneven slices and one that is empty."""
    path = write_recipe(tmp_path, QUIET, modalities=ALL_MODALITIES)
    fit(load_recipe(path), tmp_path, tmp_path / "one")
    run = in_two_processes("-m", "training", "fit", str(path), "--out", str(tmp_path / "two"), "--set", "train.accumulate=2")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("epoch 3/3") == run.stdout.count("run written to") == 1
    assert "Warning" not in run.stderr
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for wanted, found in zip(one["history"], two["history"], strict=True):
        for key in ("loss", "task_loss"):
            assert found[key] == pytest.approx(wanted[key], abs=1e-5)
        assert found["interaction"] == pytest.approx(wanted["interaction"], abs=1e-4)  # Adam magnifies rounding
        assert found["validation"] == pytest.approx(wanted["validation"], abs=1e-4)
    assert {p.name for p in (tmp_path / "two").iterdir()} == RUN_FILES
    weights, others = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("one", "two"))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_two_processes_go_through_the_stages_of_one(tmp_path: Path) -> None:
    """Every stage of a decomposition has the losses of one process; teachers and what is fitted are the same in both."""
    quiet = {key: value for key, value in QUIET.items() if not key.startswith("objective")}
    matching = {"shuffle_rate": 0.0, "head_dropout": 0.0, "min_steps": 0, "rate": 0.1}
    objective = {"kind": "decomposition", "masking": "zero", "class_weights": "balanced", "decomposition": matching}
    path = write_recipe(tmp_path, quiet | {"objective": objective}, modalities=ALL_MODALITIES)
    fit(load_recipe(path), tmp_path, tmp_path / "one")
    run = in_two_processes("-m", "training", "fit", str(path), "--out", str(tmp_path / "two"), "--set", "train.accumulate=2")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("epoch 3/3") == 4
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for stage, history in one["stages"].items():
        for wanted, found in zip(history, two["stages"][stage], strict=True):
            assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-3), stage
    assert {p.name for p in (tmp_path / "two").iterdir()} == RUN_FILES


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(tmp_path: Path) -> None:
    """With all its noise, a run of two processes that stopped after one of two epochs ends as one that never did.

    What the first process alone finds wrong is the same error in both.
    """
    write_recipe(tmp_path, {"train.epochs": 2, "train.accumulate": 2, "model.fusion": "switchgate"})
    run = in_two_processes("-m", "tests.training.two_processes", str(tmp_path))
    assert run.returncode == 0, run.stderr
    told = f"all as it should be, {tmp_path / 'absent.pt'}: no such file"
    assert sorted(run.stdout.splitlines()) == [f"rank 0: {told}", f"rank 1: {told}"], run.stderr


def test_alone_everything_is_said_by_oneself() -> None:
    """Without torchrun there is one process, the first, which asks nobody."""
    with distributed.process_group("cpu"):
        assert (distributed.rank(), distributed.num_processes(), distributed.is_first()) == (0, 1, True)
        assert first_says(lambda: 7) == 7
        assert torch.equal(distributed.sum_over_processes(torch.ones(2)), torch.ones(2))
        module = torch.nn.Linear(1, 1)
        assert distributed.share_gradients(module) is module


def test_only_fit_runs_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands would do the same work several times over one file."""
    distributed.refuse_several("sweep")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(RunError, match="sweep: expected one process, found one of torchrun's; only fit trains in several"):
        distributed.refuse_several("sweep")


def test_a_numbered_device_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes cannot share the one GPU that a recipe names."""
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    with pytest.raises(RecipeError, match=r"train.device: expected auto, cuda or cpu for 2 processes, found 'cuda:1'"):
        choose_device("cuda:1")


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """More processes than GPUs are told with both numbers."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match=r"expected a GPU for every process, found 2 for process 3 of this machine"):
        distributed._take_gpu()


@pytest.mark.parametrize("name", ["gpu0", "cuda:77", "tpu"])
def test_a_device_that_cannot_be_used_is_told(name: str) -> None:
    """A misspelt device, or a GPU that is not there, is a mistake of the recipe."""
    with pytest.raises(RecipeError, match=f"train.device: '{name}' cannot be used here: ") as error:
        choose_device(name)
    assert "\n" not in str(error.value)


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    """auto is the first GPU, else the CPU."""
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
