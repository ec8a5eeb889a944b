"""Scoring on Ray Data gives the table of one machine. Where Ray is not installed, only that it says so."""

import importlib.util
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from service.bundle.__main__ import main
from service.bundle.encoding import encode_table
from service.bundle.prediction_files import tabulate
from service.bundle.predictor import Predictor
from service.bundle.ray_data import Scorer, predict_on_ray
from service.bundle.score import score_batch
from service.bundle.store import Bundle
from service.bundle.tables import TableError
from tests.tiny_bundle import EXPERTS, write_tiny_bundle

has_ray = importlib.util.find_spec("ray") is not None
ROWS = pl.DataFrame({"id": ["a", "b", "c"], "crea": ["4", "hemolyzed", "1"], "sod": [140.0, 140.0, None], "age": [70, 70, 30]})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("ray") / "bundle")


def test_a_worker_answers_as_one_machine_does(bundle: Bundle) -> None:
    """Arrow tables in and out, whether or not Ray hands them over: bad rows among good ones."""
    told = Scorer(str(bundle.path), "cpu", 2)(ROWS.to_arrow())
    predictor = Predictor(bundle, provider="cpu")
    alone = tabulate(score_batch(predictor, encode_table(ROWS.to_arrow(), bundle.manifest.features)), EXPERTS)
    assert told == pa.Table.from_batches([alone])
    assert told["status"].to_pylist() == ["ok", "error", "ok"]
    assert Scorer(str(bundle.path), "cpu", 2)(ROWS.clear().to_arrow()).num_rows == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.skipif(not has_ray, reason="Ray is not installed")
def test_files_are_scored_by_workers(bundle: Bundle, tmp_path: Path) -> None:
    """The same rows in the same order as without Ray; a folder that holds something is not written to."""
    rows = pl.concat([ROWS] * 50).with_row_index("n").with_columns(pl.col("n").cast(pl.String).alias("id")).drop("n")
    rows.write_parquet(tmp_path / "in.parquet")
    command = ["predict", str(bundle.path), str(tmp_path / "in.parquet"), "--out"]
    assert main([*command, str(tmp_path / "out"), "--ray", "2"]) == 0
    assert main([*command, str(tmp_path / "out.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "out/*.parquet").equals(pl.read_parquet(tmp_path / "out.parquet"))
    assert main([*command, str(tmp_path / "out"), "--ray", "2"]) == 1


@pytest.mark.skipif(has_ray, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(bundle: Bundle, tmp_path: Path) -> None:
    """One sentence."""
    with pytest.raises(TableError, match=r"pip install \"i2moe-service\[ray\]\""):
        predict_on_ray(bundle.path, "in.parquet", tmp_path, num_workers=1, batch_size=8, provider="cpu")
