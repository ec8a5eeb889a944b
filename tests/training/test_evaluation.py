import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.training.small_data import ALL_MODALITIES, recipe, small_signal, small_table, write_data
from training.checkpoint import METRICS_FILE, load_checkpoint
from training.data.dataset import load_dataset
from training.errors import DataError, RunError
from training.evaluation import calibration_info, evaluate_file, evaluate_rows, read_metrics, write_metrics
from training.run import fit


def test_a_file_of_the_same_rows_has_the_same_metrics(small_run: Path, tmp_path: Path) -> None:
    """The test rows, written to a file and evaluated from it, score as they did in the run."""
    checkpoint = load_checkpoint(small_run)
    dataset = load_dataset(recipe().data, small_run.parent, seed=0)
    path = tmp_path / "other.csv"
    small_table()[dataset.splits["test"].tolist()].write_csv(path)
    found = evaluate_file(checkpoint, path)
    assert found.metrics == evaluate_rows(checkpoint, *dataset.part("test"), "test").metrics
    assert found.document()["metrics"] == read_metrics(small_run)["splits"]["test"]["metrics"]
    assert found.explanation.split == "other.csv"


@pytest.mark.parametrize(
    ("change", "told"),
    [(pl.exclude("crea"), "other.csv: has no column crea"),
     (pl.exclude("outcome"), "other.csv: has no column outcome"),
     ([pl.exclude("crea"), pl.lit("high").alias("crea")], "row 1: labs.crea: must be a number, found a string")],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_told(small_run: Path, tmp_path: Path, change: pl.Expr, told: str) -> None:
    """Columns that lack, other classes and cells that are no numbers are one line each."""
    table = small_table().head(40).select(change)
    table.write_csv(tmp_path / "other.csv")
    with pytest.raises(DataError, match=told) as error:
        evaluate_file(load_checkpoint(small_run), tmp_path / "other.csv")
    assert "\n" not in str(error.value)


def test_another_number_of_classes_is_told(small_run: Path, tmp_path: Path) -> None:
    """Three classes where the model knows two, and one where it knows two."""
    for values, told in ((["0", "1", "2"], "expected 2 classes, found 3"), (["1"], "expected 2 classes, found 1")):
        labels = pl.Series("outcome", [values[i % len(values)] for i in range(120)])
        small_table().with_columns(labels).write_csv(tmp_path / "other.csv")
        with pytest.raises(DataError, match=told):
            evaluate_file(load_checkpoint(small_run), tmp_path / "other.csv")


def test_other_labels_are_told(small_run: Path, tmp_path: Path) -> None:
    """A file whose label is spelled with other values is refused, although the recipe's names would fit two of anything."""
    table = small_table().with_columns(pl.Series("outcome", ["x" if v == "1" else "w" for v in small_table()["outcome"]]))
    table.write_csv(tmp_path / "other.csv")
    with pytest.raises(DataError, match="label outcome: expected the values 0, 1, found w, x"):
        evaluate_file(load_checkpoint(small_run), tmp_path / "other.csv")


def test_another_file_needs_neither_split_column_nor_groups(tmp_path: Path) -> None:
    """What divided the training table is of no use, and not asked for, in a table that is only scored."""
    write_data(tmp_path)
    fold = [("train", "train", "validation", "test")[(i // 2) % 4] for i in range(120)]
    small_table().with_columns(pl.Series("fold", fold)).write_csv(tmp_path / "table.csv")
    fit(recipe({"data.split": {"column": "fold"}, "data.group": "patient", "train.epochs": 1}), tmp_path, tmp_path / "run")
    small_table().drop("patient").write_csv(tmp_path / "other.csv")
    evaluation = evaluate_file(load_checkpoint(tmp_path / "run"), tmp_path / "other.csv")
    assert len(evaluation.target) == 120


def test_calibration_is_told_as_it_is_in_the_model(small_run: Path) -> None:
    """Scale, bias and the number of validation rows they were fitted on."""
    checkpoint = load_checkpoint(small_run)
    info = calibration_info(checkpoint)
    np.testing.assert_array_equal(info.scale, checkpoint.model.calibration.scale)
    np.testing.assert_array_equal(info.bias, checkpoint.model.calibration.bias)
    assert info.num_rows == 24


def test_metrics_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written as JSON leaves the old file and nothing beside it."""
    path = tmp_path / "metrics.json"
    write_metrics({"splits": {}}, path)
    with pytest.raises(TypeError):
        write_metrics({"splits": object()}, path)
    assert read_metrics(tmp_path) == {"splits": {}}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"splits": 3}'])
def test_damaged_metrics_are_told(tmp_path: Path, content: str) -> None:
    """A metrics.json that is no metrics is one line."""
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunError, match=r"metrics.json: is damaged") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)


def test_absent_metrics_are_told(tmp_path: Path, small_run: Path) -> None:
    """A folder that is not a finished run is told so."""
    shutil.copy(small_run / "checkpoint.pt", tmp_path)
    with pytest.raises(RunError, match="no such file; expected a folder of a finished python -m training fit"):
        read_metrics(tmp_path)


def test_arrays_and_dates_in_a_table_are_told(rich_run: Path, tmp_path: Path) -> None:
    """A csv cannot hold the model's array, and a date is no number: one line each, naming the column."""
    checkpoint = load_checkpoint(rich_run)
    small_table().write_csv(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"other.csv: has no column for signal.signal$"):
        evaluate_file(checkpoint, tmp_path / "other.csv")
    dates = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 4, 29), eager=True).alias("crea")
    signal = pl.Series("signal", [[0.0] * 6] * 120)
    small_table().with_columns(dates, signal).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other.parquet: column crea: expected numbers, found date32"):
        evaluate_file(checkpoint, tmp_path / "other.parquet")


def test_arrays_in_a_parquet_table_are_scored(rich_run: Path, tmp_path: Path) -> None:
    """A list column named as the array holds it flat, row by row, and scores as in training."""
    checkpoint = load_checkpoint(rich_run)
    dataset = load_dataset(recipe(modalities=ALL_MODALITIES).data, rich_run.parent, seed=0)
    cells = [None if np.isnan(row).all() else row.ravel().tolist() for row in small_signal()]
    test = dataset.splits["test"].tolist()
    small_table().with_columns(pl.Series("signal", cells))[test].write_parquet(tmp_path / "other.parquet")
    found = evaluate_file(checkpoint, tmp_path / "other.parquet")
    np.testing.assert_array_equal(found.output.logits, evaluate_rows(checkpoint, *dataset.part("test"), "test").output.logits)


@pytest.mark.parametrize("splits", [{"test": 1}, {"test": {}}, {"test": {"metrics": {"auroc": 0.5}}}, {"test": {"metrics": []}}])
def test_metrics_of_another_form_are_told(tmp_path: Path, splits: dict[str, object]) -> None:
    """Whoever edits metrics.json is told where it is no longer what it was."""
    (tmp_path / METRICS_FILE).write_text(json.dumps({"splits": splits}))
    with pytest.raises(RunError, match=r"metrics.json: is damaged \(splits.test"):
        read_metrics(tmp_path)


def test_a_model_that_answers_no_numbers_is_told(small_run: Path) -> None:
    """Weights that are not numbers are damaged, and have no metrics."""
    checkpoint = load_checkpoint(small_run)
    for parameter in checkpoint.model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(RunError, match="answers with numbers that are not finite"):
        evaluate_file(checkpoint, small_run.parent / "table.csv")
