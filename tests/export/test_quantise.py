"""Graphs of int8: what is quantised, that an answer does not depend on its batch, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from export import quantise as module
from export.__main__ import main
from export.bundle import export_bundle, run_material
from export.errors import ExportError, ParityError
from export.quantise import calibration_rows, quantise
from export.verify import PRECISION_ATOL, verify_precision
from service.bundle.output import OUTPUT_NAMES
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle, open_bundle
from service.bundle.tables import TableError
from tests.training.small_data import ALL_MODALITIES, recipe
from training.data.dataset import load_dataset
from training.data.tables import read_table


@pytest.fixture(scope="module")
def table(rich_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows that the run was trained on, its array a column like the others."""
    rows = read_table(rich_run.parent / str(recipe(modalities=ALL_MODALITIES).data.path))
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    rows.with_columns(signal=pl.Series(np.load(rich_run.parent / "signal.npy"))).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def quantised(rich_run: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of int8, of a model whose products would be too small for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NARROWEST", 4)
        return export_bundle(
            run_material(rich_run), tmp_path_factory.mktemp("int8") / "bundle", precision="int8", calibration=table
        )


def test_large_products_are_int8_and_answers_stay_close(rich_run: Path, rich_bundle: Bundle, quantised: Bundle) -> None:
    """Every row of the data within the stated limit; the manifest says what the graph is; the example is replayed."""
    manifest = open_bundle(quantised.path).manifest
    assert manifest.graph.precision == "int8"
    assert manifest.graph.inputs == rich_bundle.manifest.graph.inputs
    assert manifest.parity.atol == PRECISION_ATOL["int8"]
    assert 0 < manifest.parity.max_abs_diff <= manifest.parity.atol
    weights = [t for t in onnx.load(quantised.model_path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len([t for t in weights if len(t.dims) == 2]) >= len(manifest.experts)
    predictor, exact = (Predictor(bundle, provider="cpu") for bundle in (quantised, rich_bundle))
    assert predictor.replay_example() <= 1e-5
    dataset = load_dataset(recipe(modalities=ALL_MODALITIES).data, rich_run.parent, seed=0)
    found, wanted = predictor.run(dict(dataset.arrays)), exact.run(dict(dataset.arrays))
    for name in OUTPUT_NAMES:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=0.05, rtol=0.05)
    mixed = np.einsum("be,bec->bc", found.expert_weights, found.expert_logits)
    np.testing.assert_allclose(mixed, found.logits, atol=1e-5)


def test_an_answer_does_not_depend_on_its_batch(rich_run: Path, quantised: Bundle) -> None:
    """Scales are constants of the graph."""
    predictor = Predictor(quantised, provider="cpu")
    dataset = load_dataset(recipe(modalities=ALL_MODALITIES).data, rich_run.parent, seed=0)
    together = predictor.run(dict(dataset.arrays))
    for row in range(0, len(together), 7):
        alone = predictor.run({name: array[row : row + 1] for name, array in dataset.arrays.items()})
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-6, rtol=1e-6)


def test_a_model_of_small_products_is_refused(
    rich_run: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would gain nothing; nothing is left behind."""
    monkeypatch.setattr(module, "_NARROWEST", 99)
    material = run_material(rich_run)
    with pytest.raises(ExportError, match="no matrix product of this model is as large as 99 by 99"):
        export_bundle(material, tmp_path / "bundle", precision="int8", calibration=table)
    assert list(tmp_path.iterdir()) == []


def test_rows_must_be_enough_and_readable(rich_bundle: Bundle, table: Path, tmp_path: Path) -> None:
    """A table of something else is told, and one without a modality's column."""
    (tmp_path / "other.csv").write_text("crea\n1\n2\n")
    with pytest.raises(ExportError, match="expected a column for every feature, found none for"):
        calibration_rows(tmp_path / "other.csv", rich_bundle.manifest.features)
    read_table(table).head(20).write_parquet(tmp_path / "few.parquet")
    with pytest.raises(ExportError, match="expected at least 32 rows that the model can read, found 20"):
        calibration_rows(tmp_path / "few.parquet", rich_bundle.manifest.features)
    with pytest.raises(TableError, match="no such file"):
        calibration_rows(tmp_path / "none.csv", rich_bundle.manifest.features)


def test_answers_too_far_away_are_refused(
    rich_bundle: Bundle, quantised: Bundle, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit of the precision."""
    monkeypatch.setitem(PRECISION_ATOL, "int8", 1e-9)
    rows = calibration_rows(table, rich_bundle.manifest.features)
    with pytest.raises(ParityError, match="calibration rows: prediction differs by"):
        verify_precision(*(Predictor(bundle, provider="cpu") for bundle in (quantised, rich_bundle)), rows)


def test_the_rows_are_drawn_alike_each_time(rich_bundle: Bundle, table: Path) -> None:
    """The same run and table give the same graph."""
    rows = calibration_rows(table, rich_bundle.manifest.features)
    again = calibration_rows(table, rich_bundle.manifest.features)
    assert {name: x.tobytes() for name, x in rows.items()} == {name: x.tobytes() for name, x in again.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NARROWEST", 4)
        graphs = [quantise(onnx.load(rich_bundle.model_path), rows).SerializeToString(deterministic=True) for _ in range(2)]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("options", [["--precision", "int8"], ["--calibration", "rows.csv"]])
def test_precision_and_calibration_belong_together(
    rich_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """One without the other is a mistake."""
    assert main([str(rich_run), "--out", str(tmp_path / "bundle"), *options]) == 1
    assert "--precision int8 and --calibration TABLE belong together" in capsys.readouterr().err
