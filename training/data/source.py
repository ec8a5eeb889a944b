"""Named data sets: a loader, label rules and a leak list each. A user's own table needs none of this."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from service.bundle.tables import TableError
from training.config import Config, sentence
from training.data import adni, eicu_demo, enrico, mfeat, mimic_iv, mimic_iv_processed, mmimdb, mosi, support2
from training.data.built import BuiltData
from training.data.config import DataConfig, ModalityConfig
from training.data.modalities import Facts, table_modalities
from training.data.released import ReleasedData
from training.data.rows import RowArray
from training.data.tables import read_table
from training.errors import DataError, RecipeError

Arrays = Mapping[str, RowArray]


@dataclass(frozen=True, slots=True)
class Source:
    """A table with its label in place, and the arrays that belong to its rows."""

    frame: pl.DataFrame
    arrays: Arrays = field(default_factory=dict)  # name -> (N, ...), row-aligned
    notes: tuple[str, ...] = ()  # what was dropped and why, for the report
    facts: Facts = field(default_factory=dict)  # what the data set says of its columns
    modalities: Mapping[str, ModalityConfig] = field(default_factory=dict)  # of the recipe, every column by its name


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


@dataclass(frozen=True, slots=True)
class BuiltDataset:
    """A data set whose rows are made from the tables of a folder, as the recipe's options and label say."""

    options: type[Config]
    read: Callable[[Path, Any, Sequence[str]], BuiltData]  # of the folder, the options and the label column(s)
    leaks: frozenset[str]


NamedDataset = TableDataset | FolderDataset | BuiltDataset

DATASETS: Mapping[str, NamedDataset] = {
    "support2": TableDataset(support2.PATH, support2.LABEL_RULES, support2.LEAKS),
    "eicu_demo": TableDataset(None, eicu_demo.LABEL_RULES, eicu_demo.LEAKS),
    "mfeat": FolderDataset(mfeat.read),
    "adni": FolderDataset(adni.read),
    "mimic_iv": BuiltDataset(mimic_iv.MimicOptions, mimic_iv.read, mimic_iv.LEAKS),
    "mimic_iv_processed": FolderDataset(mimic_iv_processed.read),
    "mmimdb": FolderDataset(mmimdb.read),
    "mosi": FolderDataset(mosi.read),
    "enrico": FolderDataset(enrico.read),
}


def named_dataset(name: str) -> NamedDataset:
    """The data set called `name`. Raises `DataError` listing the known names."""
    if name not in DATASETS:
        raise DataError(f"data.name: expected one of {', '.join(DATASETS)}, found {name!r}")
    return DATASETS[name]


def load_source(config: DataConfig, folder: Path) -> Source:
    """Read the recipe's rows, apply its label rule and check its columns. `folder` is where the recipe lies.

    Raises `DataError`.
    """
    dataset = named_dataset(config.name) if config.name else None
    _refuse_leaks(config.modalities, dataset)
    options = read_options(config)
    if isinstance(dataset, FolderDataset):
        root = _root(config, folder)
        path, source = root, _released(dataset.read(root))
    elif isinstance(dataset, BuiltDataset) and config.path is None:
        root = _root(config, folder)
        path, source = root, _built(dataset.read(root, options, config.label_columns))
    else:
        path, source = _read_table(config, folder, dataset)
    source = replace(source, modalities=_modalities(source, config, dataset))
    _check_columns(source, config, path)
    return source


def read_options(config: DataConfig) -> Config | None:
    """The data set's own options, defaults where the recipe says nothing; None for data sets without any.

    Raises `RecipeError`: unknown keys and wrong values, one a line, and options for a data set that has none.
    """
    dataset = DATASETS.get(config.name) if config.name else None
    if not isinstance(dataset, BuiltDataset):
        if config.options:
            what = f"data set {config.name}" if config.name else "a table of one's own"
            raise RecipeError(f"data.options: {what} has none, found {', '.join(config.options)}")
        return None
    try:
        return dataset.options.model_validate_json(json.dumps(config.options, default=str), strict=True)
    except ValidationError as error:
        problems = (problem | {"loc": ("data", "options", *problem["loc"])} for problem in error.errors(include_url=False))
        raise RecipeError("\n".join(map(sentence, problems))) from None


def _modalities(source: Source, config: DataConfig, dataset: NamedDataset | None) -> dict[str, ModalityConfig]:
    never = {*config.label_columns, *config.exclude, config.group, config.split.column, *_leaks(dataset)} - {None}
    return table_modalities(config.modalities, source.frame.columns, source.facts, never={str(column) for column in never})


def _root(config: DataConfig, folder: Path) -> Path:
    if config.root is None:
        raise DataError(f"data set {config.name} is not shipped: data.root must name the folder that holds its files")
    root = folder / config.root
    if not root.is_dir():
        raise DataError(
            f"{root}: expected the folder of data set {config.name}, found {'a file' if root.exists() else 'nothing'}"
        )
    return root


def _released(data: ReleasedData) -> Source:
    return Source(data.frame, data.arrays, data.notes)


def _built(data: BuiltData) -> Source:
    return Source(data.frame, notes=data.notes, facts=data.facts)


def _read_table(config: DataConfig, folder: Path, dataset: NamedDataset | None) -> tuple[Path, Source]:
    rules = dataset if isinstance(dataset, TableDataset) else None
    path = folder / config.path if config.path else rules.default_path if rules else None
    if path is None:
        raise DataError(f"data set {config.name} is not shipped: give its path")
    try:
        frame = read_table(path)
    except TableError as error:
        raise DataError(str(error)) from error
    label = config.label_columns[0]
    rule = rules.label_rules.get(label) if rules else None
    return path, Source(frame) if rule is None else _apply_rule(frame, label, rule)


def _leaks(dataset: NamedDataset | None) -> frozenset[str]:
    return dataset.leaks if isinstance(dataset, TableDataset | BuiltDataset) else frozenset()


def _refuse_leaks(modalities: Mapping[str, ModalityConfig], dataset: NamedDataset | None) -> None:
    leaks = _leaks(dataset)
    for name, modality in modalities.items():
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


def _check_columns(source: Source, config: DataConfig, path: Path) -> None:
    frame = source.frame
    wanted = {*config.label_columns, config.group, config.split.column} - {None}
    wanted |= {column for modality in source.modalities.values() for column in modality.columns}
    if absent := sorted(str(column) for column in wanted if column not in frame.columns):
        raise DataError(f"{path}: has no column {', '.join(absent)}")
    if frame.height == 0:
        raise DataError(f"{path}: holds no rows")
