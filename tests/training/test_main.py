import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.small_data import small_table, write_data, write_recipe
from training.__main__ import main
from training.checkpoint import load_checkpoint

PROJECT = Path(__file__).parents[2]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was told on standard error: one line that starts with error."""
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    return told


def test_fit_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe becomes a run; evaluate prints its metrics and those of another file, and writes the latter down."""
    path, out = write_recipe(tmp_path), tmp_path / "run"
    assert main(["fit", str(path), "--out", str(out), "--set", "train.epochs=1", "--set", "train.num_bootstraps=0"]) == 0
    told = capsys.readouterr()
    assert "test:\n  auroc" in told.out
    assert f"run written to {out}" in told.out
    assert "epoch 1/1" in told.err
    assert load_checkpoint(out).recipe.train.epochs == 1
    assert main(["evaluate", str(out)]) == 0
    metrics = told.out.split("run written")[0]
    assert capsys.readouterr().out == metrics
    small_table(seed=7).write_csv(tmp_path / "new.csv")
    assert main(["evaluate", str(out), "--data", str(tmp_path / "new.csv")]) == 0
    assert "new.csv:\n  auroc" in capsys.readouterr().out
    assert json.loads((out / "metrics-new.json").read_text())["num_rows"] == 120


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"train.epoch": 1}, "train.epoch: is not a key of this section"),
    ({"train.epochs": "many"}, "train.epochs: Input should be a valid integer, found 'many'"),
    ({"data": None}, "data: is required"),
    ({"data.path": "absent.csv"}, "absent.csv: no such file"),
    ({"data.label": "nothing"}, "has no column nothing"),
    ({"data.modalities.labs": {"numeric": ["lactate"]}}, "has no column lactate"),
    ({"data.modalities.labs": {"numeric": ["note"]}}, "column note: row 1 of 120 is not a finite number"),
    ({"data.label": "codes", "data.labels": None}, "label codes: "),
    ({"data.label": "age", "data.modalities.person": {"categorical": ["sex"]}}, "label age: expected 2 classes, found"),
    ({"data.label": "patient"}, "label patient: expected 2 classes, found 60"),
    ({"data.group": "ward"}, "group column ward: "),
    ({"data.split": {"column": "ward"}}, "split column ward: expected train, validation, test, found '', '007', '010', '7'"),
    ({"data.split": {"validation": 0.001, "test": 0.2}}, "split: "),
    ({"model.num_heads": 3}, "model.hidden_dim must be a multiple of num_heads, found 8 and 3"),
    ({"model.encoders": {"default": {"kind": "cnn"}}}, "model.encoders.labs.kind: expected one of"),
    ({"model.encoders": {"labs": {"bins": 3}}}, "model.encoders.labs.bins: Extra inputs are not permitted"),
    ({"train.device": "abacus"}, "train.device: 'abacus' cannot be used here"),
    ({"train.learning_rate": 1e38}, "the model answers NaN; lower train.learning_rate"),
]


@pytest.mark.parametrize(("changes", "told"), MISTAKES, ids=[told[:30] for _, told in MISTAKES])
def test_a_mistake_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    """Expected and found on standard error, and no checkpoint, metrics or half-written file."""
    path, out = write_recipe(tmp_path, changes), tmp_path / "run"
    assert main(["fit", str(path), "--out", str(out), "--set", "train.num_bootstraps=0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert told in lines[-1]
    assert lines[-1].startswith("error: ")
    assert len(lines) == 1
    assert not out.exists() or {p.name for p in out.iterdir()} == {"recipe.json"}


def test_a_recipe_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, a folder, bytes, broken TOML, a bad --set."""
    out = ["--out", str(tmp_path / "run")]
    assert main(["fit", str(tmp_path / "absent.toml"), *out]) == 1
    assert "absent.toml: cannot be read: No such file or directory" in one_line(capsys)
    (tmp_path / "bad.toml").write_text("[data\n")
    assert main(["fit", str(tmp_path / "bad.toml"), *out]) == 1
    assert "bad.toml: is not valid TOML" in one_line(capsys)
    assert main(["fit", str(write_recipe(tmp_path)), *out, "--set", "epochs"]) == 1
    assert "--set epochs: expected section.key=value" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_used_is_one_line(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in use, another recipe, a finished run, a damaged checkpoint, no run at all."""
    path = write_recipe(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert main(["fit", str(path), "--out", str(run)]) == 1
    assert "is not empty; add --resume" in one_line(capsys)
    assert main(["fit", str(path), "--out", str(run), "--resume"]) == 1
    assert "this run is complete; nothing to resume" in one_line(capsys)
    (run / "checkpoint.pt").unlink()
    assert main(["fit", str(path), "--out", str(run), "--resume", "--set", "train.epochs=3"]) == 1
    assert "was started with another recipe" in one_line(capsys)
    (run / "checkpoint.pt").write_bytes(b"lost")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "table.csv")]) == 1
    assert "checkpoint.pt: is damaged or not a checkpoint" in one_line(capsys)
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 1
    assert "metrics.json: no such file" in one_line(capsys)


def test_a_damaged_state_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--resume on a damaged training_state.pt is refused and leaves it as it is."""
    path, out = write_recipe(tmp_path), tmp_path / "run"
    out.mkdir()
    (out / "training_state.pt").write_bytes(b"lost")
    assert main(["fit", str(path), "--out", str(out), "--resume"]) == 1
    assert "training_state.pt: is damaged or not a checkpoint" in one_line(capsys)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_resume_completes(tmp_path: Path) -> None:
    """A real process, interrupted after an epoch, says how to go on; going on finishes the run without repeating an epoch."""
    write_data(tmp_path)
    path, out = write_recipe(tmp_path, {"train.epochs": 40, "train.patience": 40, "train.num_bootstraps": 0}), tmp_path / "run"
    command = [sys.executable, "-m", "training", "fit", str(path), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "epoch 1/40" in first
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "stopped; the same command with --resume goes on after the last whole epoch"
    assert {p.name for p in out.iterdir()} == {"recipe.json", "training_state.pt"}
    resumed = subprocess.run([*command, "--resume"], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/40" not in resumed.stderr
    assert {p.name for p in out.iterdir()} == {"checkpoint.pt", "metrics.json", "report.html", "recipe.json", "explanations.npz"}
    assert load_checkpoint(out).provenance["epochs"] == 40
    epochs = [entry["epoch"] for entry in json.loads((out / "metrics.json").read_text())["history"]]
    assert epochs == list(range(40))


def test_waiting_threads_sleep_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable that torch's threads read when torch is loaded; someone's own value is kept."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert main(["fit", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run")]) == 1
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert main(["fit", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run")]) == 1
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_commands_import_torch_after_they_have_begun() -> None:
    """Or what `main` says of threads would come too late."""
    code = "import sys, training.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
