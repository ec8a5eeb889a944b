"""Files of rows as Arrow tables, whole or some rows at a time: csv, csv.gz and parquet.

Csv cells are read as text and become numbers only where a feature is numeric, so "007" stays a code; an empty cell is missing.
Rows that a damaged file has lost are told, never silently left out.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from service.bundle.tables import TableError, shortened_names

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_BLOCK_BYTES = 2 << 20  # of csv text parsed at once, read some ahead; every row must fit into one
_BUFFER_BYTES = 1 << 18  # of a parquet column read at once
_BUFFERS_BYTES = 32 << 20  # of all columns together, unless there are thousands
_RAGGED = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, EOFError, zlib.error, csv.Error)


def read_table(path: Path | str) -> pa.Table:
    """Read a csv, csv.gz or parquet file; every csv column comes as text. Raises `TableError`."""
    path = Path(path)
    _check_path(path)
    with _reading(path):
        if path.name.endswith(".parquet"):
            with _opened_parquet(path) as file:
                return _checked(file.read())
        return pa.Table.from_batches(_csv_batches(path))


def read_batches(path: Path, num_rows: int, *, wanted: Container[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The table as `read_table` reads it, `num_rows` rows at a time and in order; one batch at least. Raises `TableError`.

    Of a parquet file with columns that are `wanted`, these alone are read. Memory is bounded by the blocks of a csv file that are
    read ahead, or by the pages and buffers of a parquet file's columns, however large its row groups are.
    """
    _check_path(path)
    with _reading(path):
        batches = _parquet_batches(path, num_rows, wanted) if path.name.endswith(".parquet") else _csv_batches(path)
        yield from _even(batches, num_rows)


def count_rows(path: Path) -> int | None:
    """How many rows a parquet file says it has; None for files that would have to be read for it."""
    if not path.name.endswith(".parquet"):
        return None
    try:
        with _opened_parquet(path) as file:
            return int(file.metadata.num_rows)
    except _READ_ERRORS:
        return None


def _check_path(path: Path) -> None:
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    if not path.name.endswith(TABLE_SUFFIXES):
        raise TableError(f"{path}: expected a file ending in {', '.join(TABLE_SUFFIXES)}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as one line with its name and without any cell's content."""
    try:
        yield
    except _READ_ERRORS as error:
        raise TableError(f"{path}: cannot be read as a table: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What went wrong; of text in words of our own, since Arrow repeats the row."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in text:
        return "it is not UTF-8 text"
    if "straddles two block boundaries" in text:
        return f"a row is longer than {_BLOCK_BYTES >> 20} MB, or a quote is never closed"
    return "it is no csv" if "CSV" in text else text.partition("\n")[0].strip() or type(error).__name__


def _check_names(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise TableError(f"expected every column once, found {shortened_names(twice)} more often")


def _even(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows, `num_rows` at a time; the first batch, if it is all there is, though it be empty."""
    waiting: list[pa.RecordBatch] = []
    missing = num_rows  # in what waits
    only: pa.RecordBatch | None = None
    for position, batch in enumerate(batches):
        only, start = None if position or len(batch) else batch, 0
        while len(batch) - start >= missing:
            yield _joined([*waiting, batch.slice(start, missing)])
            start, waiting, missing = start + missing, [], num_rows
        if start < len(batch):
            waiting.append(batch.slice(start))
            missing -= len(batch) - start
    if waiting or only is not None:
        yield _joined(waiting or [only])


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


# Parquet


@contextmanager
def _opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Read through buffers, since a row group may be larger than memory."""
    with pa.OSFile(str(path)) as file:
        metadata = pq.read_metadata(file)
        buffer_size = max(1 << 12, min(_BUFFER_BYTES, _BUFFERS_BYTES // max(1, metadata.num_columns)))
        yield pq.ParquetFile(file, metadata=metadata, buffer_size=buffer_size, pre_buffer=False)


def _checked(table: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """What a damaged page may have made of text and of categories is found out here."""
    _check_names(table.schema.names)
    table.validate(full=True)
    return table


def _parquet_batches(path: Path, num_rows: int, wanted: Container[str] | None) -> Iterator[pa.RecordBatch]:
    with _opened_parquet(path) as file:
        schema = file.schema_arrow
        yield _checked(pa.RecordBatch.from_arrays([pa.nulls(0, type_) for type_ in schema.types], schema=schema))
        names = None if wanted is None else [name for name in schema.names if name in wanted]
        yield from map(_checked, file.iter_batches(batch_size=num_rows, columns=names or None, use_threads=False))


# Csv


class _WithLastRow:
    """A csv file with a row of empty cells after its end, which a quote that is never closed would swallow."""

    def __init__(self, file: BinaryIO, width: int) -> None:
        self._file, self._row = file, b"," * (width - 1) + b"\n"
        self._last = b""  # byte
        self.closed = False

    def read(self, size: int) -> bytes:
        """The next bytes, `size` at most, none at the end."""
        wanted = size - len(self._row) - 1
        data = self._file.read(wanted)
        if len(data) < wanted and self._row:
            end = b"" if (data or self._last).endswith(b"\n") else b"\n"
            data, self._row = data + end + self._row, b""
        self._last = data[-1:]
        return data

    def close(self) -> None:
        """The file itself is closed by whoever opened it."""
        self.closed = True


def _csv_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with _opened_csv(path) as file:
        names, num_lines = _header(file)
    _check_names(names)
    with _opened_csv(path) as file:
        last: pa.RecordBatch | None = None
        for batch in _parsed(_WithLastRow(file, len(names)), names, num_lines):
            if last is not None:
                yield last
            last = batch
    if last is None or not last.column(len(names) - 1)[-1:].null_count:
        raise TableError("a quote is never closed")
    yield last[:-1]


def _opened_csv(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _header(file: BinaryIO) -> tuple[list[str], int]:
    """The names of the columns, and how many lines they take, blank ones before them included."""
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = csv.reader(iter(lambda: text.readline(_BLOCK_BYTES), ""), strict=True)
        for names in filter(None, rows):
            return names, rows.line_num
    raise TableError("it is empty")


def _parsed(file: _WithLastRow, names: list[str], num_lines: int) -> Iterator[pa.RecordBatch]:
    """Blank lines are skipped, but where there is one column they are its missing cells."""
    try:
        yield from filter(
            len,
            arrow_csv.open_csv(
                file,
                read_options=arrow_csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK_BYTES, column_names=names, skip_rows=num_lines
                ),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=len(names) > 1),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ),
        )
    except pa.ArrowInvalid as error:
        if ragged := _RAGGED.match(str(error)):
            message = f"row {int(ragged[1]) - num_lines} has {ragged[3]} cells, the header {ragged[2]}"
            raise TableError(message) from None
        raise
