"""Files of rows: what `python -m service.bundle predict` and training read, and tables of MIMIC-IV."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.bundles import RECORD, write_rich_bundle
from tests.fuzz.mutations import Content, damaged, gzipped, json_texts
from tests.fuzz.profile import check, fuzz
from tests.fuzz.worker import Worker

_CSV = (
    "id,labs.crea,flag,codes,groups,words,note\n"
    '1,2.5,yes,I10|I20,icd10:I50.9,"kidney, failure",kidney heart\n'
    "2,,no,I10,,heart,\n"
    "3,x,maybe,,icd9:4280,,stable\n"
) * 20


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every kind of feature."""
    return write_rich_bundle(tmp_path_factory.mktemp("tables") / "bundle").path


def _table() -> pl.DataFrame:
    image, flag = pl.lit([1.0, 2.0], pl.List(pl.Float64)), pl.col("flag").cast(pl.Categorical)
    return pl.read_csv(_CSV.encode(), infer_schema=False).with_columns(flag, image=image)


def _parquet_of_polars(compression: Any) -> bytes:
    file = io.BytesIO()
    _table().write_parquet(file, compression=compression)
    return file.getvalue()


def _parquet_of_arrow(**options: Any) -> bytes:
    file = io.BytesIO()
    table = _table().cast({"image": pl.Array(pl.Float64, 2)}).to_arrow()
    pq.write_table(table, file, row_group_size=25, data_page_size=100, **options)
    return file.getvalue()


CONTENTS = {
    "csv": st.one_of(damaged(_CSV.encode()), st.binary(max_size=300).map(Content)),
    "csv.gz": st.one_of(damaged(gzipped(_CSV.encode())), damaged(_CSV.encode()).map(lambda c: Content(gzipped(c)))),
    "parquet": st.one_of(
        damaged(_parquet_of_polars("zstd")),
        damaged(_parquet_of_polars("uncompressed")),
        damaged(_parquet_of_arrow(compression="snappy")),
        damaged(_parquet_of_arrow(compression="none", use_dictionary=False, data_page_version="2.0")),
    ),
    "jsonl": st.one_of(json_texts(RECORD), damaged((json.dumps(RECORD) + "\n").encode() * 3)),
}


@pytest.mark.parametrize("suffix", CONTENTS)
def test_any_file_is_scored_or_refused(worker: Worker, bundle: Path, suffix: str) -> None:
    """A file of rows, damaged or not, is scored row by row, or a line says why it cannot be read."""
    path, out = bundle.with_name(f"rows.{suffix}"), bundle.with_name("out.parquet")

    @fuzz()
    @given(content=CONTENTS[suffix])
    def holds(content: Content) -> None:
        path.write_bytes(content)
        answer = worker.read("bundle", "predict", bundle, path, "--out", out, "--provider", "cpu")
        check(answer)

    holds()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_archive_is_never_taken_for_a_whole_one(worker: Worker, bundle: Path, share: float) -> None:
    """Rows that were lost are told, not silently left out."""
    whole = gzipped((_CSV * 500).encode())
    path = bundle.with_name("cut.csv.gz")
    path.write_bytes(whole[: int(len(whole) * share)])
    answer = worker.read("bundle", "predict", bundle, path, "--out", bundle.with_name("out.csv"), "--provider", "cpu")
    check(answer)
    assert answer.status == 1, answer


_LABEVENTS = "subject_id,hadm_id,itemid,charttime,valuenum,valueuom\n" + "".join(
    f"{i},{i * 10},50912,2180-05-0{i} 22:25:00,{i}.5,mg/dL\n" for i in range(1, 9)
)
_FLIPPED_COLUMNS = ("subject_id", "charttime", "valuenum", "no_such", "subject_id,subject_id", "")


@st.composite
def mimic_tables(draw: Any) -> Content:
    """A table of MIMIC-IV as csv.gz: a column gone, of another type or there twice; lines broken; the archive cut."""
    header, _, rows = _LABEVENTS.partition("\n")
    renamed = header.replace(draw(st.sampled_from(header.split(","))), draw(st.sampled_from(_FLIPPED_COLUMNS)))
    instead = draw(st.sampled_from(("x", "", '"', "\n", "9" * 400)))
    rows = rows.replace(draw(st.sampled_from(("1", ".5", ":", ",", "mg/dL"))), instead)
    text = draw(st.sampled_from((f"{header}\n{rows}", f"{renamed}\n{rows}", _LABEVENTS))).encode()
    return Content(draw(st.one_of(damaged(gzipped(text)), st.just(gzipped(text)), damaged(text).map(gzipped))))


def test_any_table_of_mimic_is_read_or_refused(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A table is read whole, or a line names it and holds none of its cells."""
    root = tmp_path_factory.mktemp("mimic")
    (root / "hosp").mkdir()

    @fuzz()
    @given(content=mimic_tables())
    def holds(content: Content) -> None:
        (root / "hosp" / "labevents.csv.gz").write_bytes(content)
        answer = worker.read("mimic", root)
        check(answer)
        assert "2180-05" not in answer.told.partition("labevents.csv.gz")[2].replace("2180-05-06 22:25:00", "")

    holds()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_table_of_mimic_is_refused(worker: Worker, tmp_path: Path, share: float) -> None:
    """Rows that a broken download has lost are told, not silently left out."""
    (tmp_path / "hosp").mkdir()
    whole = gzipped((_LABEVENTS * 300).encode())
    (tmp_path / "hosp" / "labevents.csv.gz").write_bytes(whole[: int(len(whole) * share)])
    answer = worker.read("mimic", tmp_path)
    check(answer)
    assert answer.status == 1, answer
