import re

import pytest

from training.progress import epoch_line, show_notes, show_progress
from training.train_config import TrainConfig
from training.trainer import EpochRecord

RECORD = EpochRecord(2, 0.75, 0.5, {"unique:a": 0.2, "synergy": 0.4}, {"auroc": 0.8, "log_loss": 0.6, "f1": 0.7})


def test_an_epoch_is_one_line_with_its_values() -> None:
    """Losses, mean interaction loss, the selection metric first."""
    line = epoch_line(RECORD, TrainConfig(selection="f1"))
    assert line == "loss 0.7500  task 0.5000  interaction 0.3000  validation f1 0.7000  auroc 0.8000  log_loss 0.6000"


def test_without_interaction_losses_none_is_told() -> None:
    """A run on the task alone does not divide by nothing."""
    line = epoch_line(EpochRecord(0, 0.5, 0.5, {}, RECORD.validation), TrainConfig())
    assert "interaction" not in line


def test_away_from_a_terminal_each_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error gets one line per epoch, standard output nothing."""
    show_progress(iter([RECORD, RECORD]), TrainConfig(epochs=5), first_epoch=2)
    told = capsys.readouterr()
    assert told.out == ""
    assert re.findall(r"^epoch 3/5  loss", told.err, re.MULTILINE) == ["epoch 3/5  loss"] * 2


def test_notes_are_lines_of_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """What the data's reader noticed is seen when training begins, not only in the report."""
    show_notes(["3 of 120 rows dropped: without any value", "odd"])
    assert capsys.readouterr().err == "note: 3 of 120 rows dropped: without any value\nnote: odd\n"


def test_on_a_terminal_epochs_move_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a bar that starts where a resumed run starts."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    show_progress(iter([RECORD]), TrainConfig(epochs=3), first_epoch=2)
    told = capsys.readouterr().err
    assert "3/3" in told
    assert "auroc 0.8000" in told


def test_a_stage_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Stages after the first have one loss and their own validation figures."""
    record = EpochRecord(0, 0.5, 0.5, {}, {"matching_error": 0.25, "labs": 0.1, "r2_sum": 0.75})
    show_progress(iter([record]), TrainConfig(epochs=2, selection="f1"), first_epoch=0, stage="experts")
    told = capsys.readouterr().err
    assert told == "experts: epoch 1/2  loss 0.5000  validation matching_error 0.2500  r2_sum 0.7500\n"
