"""The synthetic tables are in the official format: the reader takes them."""

from pathlib import Path

import polars as pl

from benchmarks.mimic_iv import generate
from tests.training.data.mimic_iv.hospital import COLUMNS
from training.data.mimic_iv import MimicOptions, read


def test_generated_tables_are_read(tmp_path: Path) -> None:
    """All columns of the official tables, as many results as asked for, and rows with values made of them."""
    generate(tmp_path / "m", 20_000)
    labs = pl.read_csv(tmp_path / "m" / "hosp" / "labevents.csv.gz", infer_schema=False)
    assert labs.height == 20_000
    assert labs.columns == COLUMNS["labevents"]
    assert labs["subject_id"].is_sorted()
    assert 0.2 < labs["hadm_id"].null_count() / labs.height < 0.32
    for name in ("patients", "admissions"):
        assert pl.read_csv(tmp_path / "m" / "hosp" / f"{name}.csv.gz", infer_schema=False).columns == COLUMNS[name]
    data = read(tmp_path / "m", MimicOptions(), ["one_year_mortality"])
    assert data.frame.height > 20
    assert data.frame["lab_base_excess"].count() > data.frame.height // 2
