"""Named data sets: a loader, label rules and a leak list each. A user's own table needs none of this."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from service.bundle.tables import TableError, read_table
from training.data import adni, eicu_demo, enrico, mfeat, mimic_iv_processed, mmimdb, mosi, support2
from training.data.config import DataConfig
from training.data.released import ReleasedData
from training.data.rows import RowArray
from training.errors import DataError

Arrays = Mapping[str, RowArray]


@dataclass(frozen=True, slots=True)
class Source:
    """A table with its label in place, and the arrays that belong to its rows."""

    frame: pl.DataFrame
    arrays: Arrays = field(default_factory=dict)  # name -> (N, ...), row-aligned
    notes: tuple[str, ...] = ()  # what was dropped and why, for the report


LabelRule = Callable[[pl.DataFrame], tuple[pl.Series, pl.Series]]
"""A table to its label (one value per row) and to which rows are kept (booleans)."""


@dataclass(frozen=True, slots=True)
class TableDataset:
    """What the module of a data set that is one table says about it."""

    default_path: Path | None
    label_rules: Mapping[str, LabelRule]
    leaks: frozenset[str]


@dataclass(frozen=True, slots=True)
class FolderDataset:
    """A data set that is a folder of files with a reader of its own."""

    read: Callable[[Path], ReleasedData]


DATASETS: Mapping[str, TableDataset | FolderDataset] = {
    "support2": TableDataset(support2.PATH, support2.LABEL_RULES, support2.LEAKS),
    "eicu_demo": TableDataset(None, eicu_demo.LABEL_RULES, eicu_demo.LEAKS),
    "mfeat": FolderDataset(mfeat.read),
    "adni": FolderDataset(adni.read),
    "mimic_iv_processed": FolderDataset(mimic_iv_processed.read),
    "mmimdb": FolderDataset(mmimdb.read),
    "mosi": FolderDataset(mosi.read),
    "enrico": FolderDataset(enrico.read),
}


def named_dataset(name: str) -> TableDataset | FolderDataset:
    """The data set called `name`. Raises `DataError` listing the known names."""
    if name not in DATASETS:
        raise DataError(f"data.name: expected one of {', '.join(DATASETS)}, found {name!r}")
    return DATASETS[name]


def load_source(config: DataConfig, folder: Path) -> Source:
    """Read the recipe's rows, apply its label rule and check its columns. `folder` is where the recipe lies.

    Raises `DataError`.
    """
    dataset = named_dataset(config.name) if config.name else None
    if isinstance(dataset, FolderDataset):
        path, source = _read_folder(config, folder, dataset)
    else:
        path, source = _read_table(config, folder, dataset)
    _check_columns(source.frame, config, path)
    return source


def _read_folder(config: DataConfig, folder: Path, dataset: FolderDataset) -> tuple[Path, Source]:
    if config.root is None:
        raise DataError(f"data set {config.name} is not shipped: data.root must name the folder that holds its files")
    root = folder / config.root
    if not root.is_dir():
        raise DataError(
            f"{root}: expected the folder of data set {config.name}, found {'a file' if root.exists() else 'nothing'}"
        )
    data = dataset.read(root)
    return root, Source(data.frame, data.arrays, data.notes)


def _read_table(config: DataConfig, folder: Path, dataset: TableDataset | None) -> tuple[Path, Source]:
    _refuse_leaks(config, dataset)
    path = folder / config.path if config.path else dataset.default_path if dataset else None
    if path is None:
        raise DataError(f"data set {config.name} is not shipped: give its path")
    try:
        frame = read_table(path)
    except TableError as error:
        raise DataError(str(error)) from error
    label = config.label_columns[0]
    rule = dataset.label_rules.get(label) if dataset else None
    return path, Source(frame) if rule is None else _apply_rule(frame, label, rule)


def _refuse_leaks(config: DataConfig, dataset: TableDataset | None) -> None:
    leaks = dataset.leaks if dataset else frozenset()
    for name, modality in config.modalities.items():
        if found := sorted(leaks & set(modality.columns)):
            raise DataError(f"modality {name} uses {', '.join(found)} as a feature, which is known only after the outcome (leak)")


def _apply_rule(frame: pl.DataFrame, label: str, rule: LabelRule) -> Source:
    try:
        values, kept = rule(frame)
    except (pl.exceptions.ColumnNotFoundError, TableError) as error:
        raise DataError(f"label rule {label}: {str(error).splitlines()[0]}") from error
    labelled = frame.with_columns(values.alias(label)).filter(kept)
    num_dropped = frame.height - labelled.height
    notes = (f"{num_dropped} of {frame.height} rows dropped by the label rule {label}",) if num_dropped else ()
    return Source(labelled, notes=notes)


def _check_columns(frame: pl.DataFrame, config: DataConfig, path: Path) -> None:
    wanted = {*config.label_columns, config.group, config.split.column} - {None}
    wanted |= {column for modality in config.modalities.values() for column in modality.columns}
    if absent := sorted(str(column) for column in wanted if column not in frame.columns):
        raise DataError(f"{path}: has no column {', '.join(absent)}")
    if frame.height == 0:
        raise DataError(f"{path}: holds no rows")
