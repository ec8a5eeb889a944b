"""Files of rows: read whole or some rows at a time, or refused in one sentence that holds no cell."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import table_files
from service.bundle.table_files import count_rows, read_batches, read_table
from service.bundle.tables import TableError, column_values, numbers


def read_csv(folder: Path, content: bytes) -> dict[str, list[str | None]]:
    """The columns of a csv file of these bytes."""
    path = folder / "t.csv"
    path.write_bytes(content)
    return dict(read_table(path).to_pydict())


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_all_kinds_of_tables_are_read(tmp_path: Path, name: str) -> None:
    """Csv, compressed csv and parquet are the same table."""
    path, text = tmp_path / name, "crea,ward\n1.5,007\n,7\n"
    if name.endswith(".parquet"):
        pl.DataFrame({"crea": [1.5, None], "ward": ["007", "7"]}).write_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    frame = read_table(str(path))
    assert column_values(frame, "crea", numeric=True) == [1.5, None]
    assert column_values(frame, "ward", numeric=False) == ["007", "7"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "it is empty"),
        ("blank.csv", b"\n\n", "it is empty"),
        ("wide.csv", b"a,b\n1,2\n3,4,5\n", "row 2 has 3 cells, the header 2"),
        ("narrow.csv", b"\na,b\n\n1,2\n\n3\n", "row 2 has 1 cells, the header 2"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "expected every column once, found a more often"),
        ("open.csv", b'a,b\n1,2\n3,"4\n5,6\n', "a quote is never closed"),
        ("open_end.csv", b'a,b\n1,"2""', "a quote is never closed"),
        ("open_one.csv", b'a\n1\n"2\n', "a quote is never closed"),
        ("open_header.csv", b'a,"b\n1,2\n', "unexpected end of data"),
        ("long.csv", b"a,b\n1," + b"x" * (5 << 20), "a row is longer than 2 MB, or a quote is never closed"),
        ("long_header.csv", b"a" * (5 << 20), "field larger than field limit"),
        ("binary.csv", bytes(range(256)), "it is not UTF-8 text"),
        ("latin.csv", "a,b\n1,ä\n".encode("latin-1"), "it is not UTF-8 text"),
        ("cut.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 100)[:20], "ended before the end-of-stream marker"),
        ("plain.csv.gz", b"a,b\n1,2\n", "Not a gzipped file"),
        ("text.parquet", b"a,b\n1,2\n", "parquet"),
        ("empty.parquet", b"", "(?i)parquet"),
        ("t.xlsx", b"PK", r"expected a file ending in \.csv, \.csv\.gz, \.parquet"),
        ("folder.csv", "folder", "no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    """An unreadable file is one sentence with its name."""
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(TableError, match=words) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b'name,crea\n"Jane Doe,2\n',
        b"name,crea\nJane Doe\n",
        b"name,crea\nJane Doe,1,2\n",
        b"name,crea\nJane Doe,\xff\n",
        b"name,crea\nJane Doe\xff\n",
        b'name,crea\n1,2\n"Jane" Doe\n',
        b'"name,crea\nJane Doe,2\n',
        b'na"me,cr"ea\n"Jane Doe',
        b"name,crea\n" + b"Jane Doe," * 300_000 + b"\n",
        b'name,crea\n"' + b"Jane Doe," * 300_000 + b"\n",
    ],
)
def test_a_broken_row_is_not_repeated(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """What Arrow quotes from the file may be a patient's value and stays out of the message, and out of everything printed."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match="cannot be read as a table: ") as caught:
        read_table(path)
    assert "Jane" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_header_without_rows_is_a_table(tmp_path: Path) -> None:
    """A header alone is a table."""
    (tmp_path / "t.csv").write_text("crea,ward\n")
    frame = read_table(tmp_path / "t.csv")
    assert frame.num_rows == 0
    assert numbers(frame, "crea").tolist() == []
    assert [len(batch) for batch in read_batches(tmp_path / "t.csv", 5)] == [0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2", {"a": ["1"], "b": ["2"]}),
        (b"a,b", {"a": [], "b": []}),
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", {"a": ["1"], "b": ["2"]}),
        (b'"a\nb",c\n1,"x,\ny"\n', {"a\nb": ["1"], "c": ["x,\ny"]}),
        (b'a,b\n"x""y",x"y\n,""\n', {"a": ['x"y', None], "b": ['x"y', ""]}),
        (b"\n\na,b\n\n1,2\n\n\n", {"a": ["1"], "b": ["2"]}),
        (b"a\n1\n\n2\n\n", {"a": ["1", None, "2", None]}),
        (b"\na\n1\n\n2", {"a": ["1", None, "2"]}),
        (b"a\r1\r", {"a": ["1"]}),
        (b"a\r", {"a": []}),
        (b"a,b\r\n1,2\r", {"a": ["1"], "b": ["2"]}),
        (b" a ,,#\n 1 ,2,007\n#,NA,null\n", {" a ": [" 1 ", "#"], "": ["2", "NA"], "#": ["007", "null"]}),
        ("größe,例\n½,é\n".encode(), {"größe": ["½"], "例": ["é"]}),
    ],
)
def test_csv_is_read_as_text(tmp_path: Path, content: bytes, expected: dict[str, list[str | None]]) -> None:
    """Quoted commas, quotes and line ends, marks and line ends of Windows, any name; only an empty cell is missing."""
    assert read_csv(tmp_path, content) == expected


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5) | st.text('a,"\n', max_size=5)
tables = st.integers(1, 3).flatmap(lambda width: st.lists(st.lists(words, min_size=width, max_size=width), max_size=30))


@settings(deadline=None, max_examples=200)
@given(rows=tables, num_rows=st.integers(1, 7), end=st.sampled_from(["\n", "\r\n", "\r"]), ends=st.booleans())
def test_any_csv_comes_back_in_batches(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], num_rows: int, end: str, ends: bool
) -> None:
    """Whatever cells hold and wherever blocks of the file end; all batches but the last have the size asked for."""
    width = len(rows[0]) if rows else 1
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([[f"c{i}" for i in range(width)], *rows])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text(file.getvalue() if ends else file.getvalue().removesuffix(end), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_files, "_BLOCK_BYTES", 100)
        batches = list(read_batches(path, num_rows))
    assert [list(row.values()) for batch in batches for row in batch.to_pylist()] == rows
    assert {len(batch) for batch in batches[:-1]} <= {num_rows}
    assert len(batches[-1]) <= num_rows


def test_a_large_csv_file_is_read_in_little_memory(tmp_path: Path) -> None:
    """A few blocks of it, however long it is."""
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + f"1,{'x' * 1000}\n" * 100_000)
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in read_batches(path, 128))
    assert peak < 90 << 20 < path.stat().st_size


@pytest.mark.parametrize("rows_in_group", [1, 3, 100, 1000])
def test_batches_do_not_depend_on_row_groups(tmp_path: Path, rows_in_group: int) -> None:
    """Rows in order and in even batches, categories of every row group among them."""
    ids = [f"row-{i}" for i in range(300)]
    table = pa.table({"id": ids, "ward": pa.array([f"w{i // 100}" for i in range(300)]).dictionary_encode(), "x": range(300)})
    table = table.append_column("view", pa.array(ids, pa.string_view()))
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows_in_group)
    batches = list(read_batches(tmp_path / "t.parquet", 128))
    assert [len(batch) for batch in batches] == [128, 128, 44]
    for name in table.column_names:
        assert [v for batch in batches for v in column_values(batch, name, numeric=False)] == table[name].to_pylist()
    assert count_rows(tmp_path / "t.parquet") == 300


def test_a_large_row_group_is_read_in_little_memory(tmp_path: Path) -> None:
    """Page by page."""
    cells = pa.FixedSizeListArray.from_arrays(np.random.default_rng(0).standard_normal(20_000 * 256, np.float32), 256)
    pq.write_table(pa.table({"ecg": cells}), tmp_path / "t.parquet", row_group_size=1 << 20)
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in read_batches(tmp_path / "t.parquet", 128))
    assert peak < 8 << 20 < (tmp_path / "t.parquet").stat().st_size


@pytest.mark.parametrize(
    ("wanted", "read"),
    [({"labs.crea", "x"}, ["labs.crea"]), ({"ward", "id"}, ["id", "ward"]), ({"x"}, ["id", "labs.crea", "ward"])],
)
def test_only_columns_that_are_wanted_are_read(tmp_path: Path, wanted: set[str], read: list[str]) -> None:
    """Of a parquet file, whatever their names; of one that has none of them all are, so that rows are rows still."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "labs.crea": [1.5, 2.0], "ward": ["007", "7"]}), path)
    (batch,) = read_batches(path, 8, wanted=wanted)
    assert (batch.schema.names, batch.num_rows) == (read, 2)


def test_a_parquet_file_without_rows_is_one_empty_batch(tmp_path: Path) -> None:
    """Its columns can be looked at."""
    pl.DataFrame({"crea": [1.0], "ward": pl.Series(["a"], dtype=pl.Categorical)}).clear().write_parquet(tmp_path / "t.parquet")
    (batch,) = read_batches(tmp_path / "t.parquet", 5)
    assert (batch.num_rows, batch.schema.names) == (0, ["crea", "ward"])


def test_files_of_polars_are_read(tmp_path: Path) -> None:
    """Every type that polars writes and a feature may be made of."""
    frame = pl.DataFrame(
        {
            "text": ["a", None],
            "category": pl.Series(["a", None], dtype=pl.Categorical),
            "enum": pl.Series(["b", None], dtype=pl.Enum(["a", "b"])),
            "flag": [True, None],
            "whole": pl.Series([1, None], dtype=pl.UInt8),
            "number": [1.5, None],
            "list": [[1.0, 2.0], None],
            "array": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int16, 2)),
            "empty": pl.Series([None, None], dtype=pl.Null),
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    (batch,) = read_batches(tmp_path / "t.parquet", 5)
    assert {name: column_values(batch, name, numeric=False) for name in frame.columns} == frame.to_dict(as_series=False)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Nobody could say which one is meant."""
    pq.write_table(pa.Table.from_arrays([[1], [2]], names=["crea", "crea"]), tmp_path / "t.parquet")
    for read in (read_table, lambda path: next(read_batches(path, 5))):
        with pytest.raises(TableError, match="expected every column once, found crea more often"):
            read(tmp_path / "t.parquet")


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    """Arrow says that it needs a key; the number of its rows is not known."""
    from pyarrow.parquet import encryption

    class Keys(encryption.KmsClient):
        def __init__(self, _config: Any) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, _name: str) -> bytes:
            return key

    factory = encryption.CryptoFactory(Keys)
    properties = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(), encryption.EncryptionConfiguration(footer_key="k", column_keys={"k": ["crea"]})
    )
    with pq.ParquetWriter(tmp_path / "t.parquet", pa.schema({"crea": pa.int64()}), encryption_properties=properties) as writer:
        writer.write_table(pa.table({"crea": [1]}))
    with pytest.raises(TableError, match="encrypted"):
        list(read_batches(tmp_path / "t.parquet", 5))
    assert count_rows(tmp_path / "t.parquet") is None


def test_text_that_is_none_is_found_when_it_is_read(tmp_path: Path) -> None:
    """Arrow takes the bytes of a text column on trust."""
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"name": text}), tmp_path / "t.parquet")
    with pytest.raises(TableError, match="cannot be read as a table"):
        list(read_batches(tmp_path / "t.parquet", 5))
