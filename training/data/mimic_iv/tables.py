"""The official tables: where they lie, which columns are read, and how the large ones are read without holding them.

Every csv.gz is decompressed as a stream (polars' streaming engine), so memory does not grow with a table. With a cache folder
the columns read of a large table are written there as parquet once, named by size and time of the original.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.data.tables import polars_reason
from training.errors import DataError

SUFFIXES = (".parquet", ".csv", ".csv.gz")  # the first that is there is read
TIME_FORMAT, DATE_FORMAT = "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"
Columns = Mapping[str, type[pl.DataType] | pl.DataType]

_FOLDERS = {"chartevents": "icu", "discharge": "note", "radiology": "note"}
_TIME = pl.Datetime("us")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one copy of MIMIC-IV."""

    root: Path
    cache: Path | None = None

    def path(self, name: str) -> Path:
        """The file of a table. Raises `DataError`."""
        folder = self.root / _FOLDERS.get(name, "hosp")
        for suffix in SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
        found = "no such folder" if not folder.is_dir() else "none of them"
        raise DataError(f"{folder}: expected {name}.csv.gz, {name}.csv or {name}.parquet of MIMIC-IV, found {found}")

    def scan(self, name: str, columns: Columns, *, optional: Columns | None = None) -> pl.LazyFrame:
        """Columns of a large table, typed, unread; `optional` ones where the table has them. Raises `DataError`.

        A time that cannot be read is null.
        """
        path = self.path(name)
        wanted = _present(path, columns, optional or {})
        if self.cache is not None and not path.name.endswith(".parquet"):
            path = self._cached(path, wanted)
        return _typed(_scan(path, wanted), wanted)

    def read(self, name: str, columns: Columns) -> pl.DataFrame:
        """Columns of a table that fits into memory. Raises `DataError`, for a time that cannot be read too."""
        path = self.path(name)
        wanted = _present(path, columns, {})
        with reading(path):
            raw = _scan(path, wanted).select(list(wanted)).collect(engine="streaming")
            frame = _typed(raw.lazy(), wanted).collect()
        for column in wanted:
            if num_bad := frame[column].null_count() - raw[column].null_count():
                raise DataError(
                    f"{path}: column {column}: {num_bad} of {frame.height} values are not times like 2180-05-06 22:25:00"
                )
        return frame

    def _cached(self, path: Path, wanted: Columns) -> Path:
        assert self.cache is not None
        stat, names = path.stat(), zlib.crc32(",".join(wanted).encode())
        copy = self.root / self.cache / f"{path.name.split('.')[0]}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{names:08x}.parquet"
        if copy.is_file():
            return copy
        partial = copy.with_name(f".{copy.name}.partial")
        with reading(path):
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                _typed(_scan(path, wanted), wanted).sink_parquet(partial, compression="zstd")
                partial.replace(copy)
            finally:
                partial.unlink(missing_ok=True)
        return copy


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while `path` is read, as one line without any cell's content."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table: {polars_reason(error)}") from None


def _scan(path: Path, columns: Columns) -> pl.LazyFrame:
    if path.name.endswith(".parquet"):
        return pl.scan_parquet(path, glob=False)
    read_as = {name: pl.String if _is_time(dtype) else dtype for name, dtype in columns.items()}
    return pl.scan_csv(path, infer_schema=False, schema_overrides=read_as, glob=False)


def _present(path: Path, columns: Columns, optional: Columns) -> Columns:
    with reading(path):
        names = _scan(path, {}).collect_schema().names()
    if absent := [name for name in columns if name not in names]:
        raise DataError(f"{path}: expected columns {', '.join(columns)}, found no {', '.join(absent)}")
    return {**columns, **{name: dtype for name, dtype in optional.items() if name in names}}


def _is_time(dtype: object) -> bool:
    return dtype in {pl.Datetime, pl.Date}


def _typed(frame: pl.LazyFrame, columns: Columns) -> pl.LazyFrame:
    schema = frame.collect_schema()
    return frame.select(_as_type(name, schema[name], dtype) for name, dtype in columns.items())


def _as_type(name: str, found: pl.DataType, wanted: object) -> pl.Expr:
    """A column as the type it is used as; in parquet files times may be times already, in csv files they are text.

    Of a moment the date may be asked for.
    """
    column = pl.col(name)
    if found != pl.String or not _is_time(wanted):
        return column.cast(_TIME if wanted == pl.Datetime else wanted)  # type: ignore[arg-type]  # one of those of `Columns`
    if wanted == pl.Date:
        return column.str.slice(0, len("2180-05-06")).str.to_date(DATE_FORMAT, strict=False)
    return column.str.to_datetime(TIME_FORMAT, strict=False, time_unit="us")
