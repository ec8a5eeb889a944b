"""Named data sets: a loader, label rules and a leak list each. A user's own table needs none of this."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from service.bundle.tables import TableError, read_table
from training.data import support2
from training.data.config import DataConfig
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class Source:
    """A table with its label in place."""

    frame: pl.DataFrame
    notes: tuple[str, ...] = field(default=())  # what was dropped and why, for the report


LabelRule = Callable[[pl.DataFrame], tuple[pl.Series, pl.Series]]
"""A table to its label (one value per row) and to which rows are kept (booleans)."""


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """What a data set module says about its data."""

    default_path: Path | None
    label_rules: Mapping[str, LabelRule]
    leaks: frozenset[str]


DATASETS: Mapping[str, NamedDataset] = {
    "support2": NamedDataset(support2.PATH, support2.LABEL_RULES, support2.LEAKS),
}


def named_dataset(name: str) -> NamedDataset:
    """The data set called `name`. Raises `DataError` listing the known names."""
    if name not in DATASETS:
        raise DataError(f"data.name: expected one of {', '.join(DATASETS)}, found {name!r}")
    return DATASETS[name]


def load_source(config: DataConfig, folder: Path) -> Source:
    """Read the recipe's table, apply its label rule and check its columns. `folder` is where the recipe lies.

    Raises `DataError`.
    """
    dataset = named_dataset(config.name) if config.name else None
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
    source = Source(frame) if rule is None else _apply_rule(frame, label, rule)
    _check_columns(source.frame, config, path)
    return source


def _refuse_leaks(config: DataConfig, dataset: NamedDataset | None) -> None:
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
    return Source(labelled, notes)


def _check_columns(frame: pl.DataFrame, config: DataConfig, path: Path) -> None:
    wanted = {*config.label_columns, config.group, config.split.column} - {None}
    wanted |= {column for modality in config.modalities.values() for column in modality.columns}
    if absent := sorted(str(column) for column in wanted if column not in frame.columns):
        raise DataError(f"{path}: has no column {', '.join(absent)}")
    if frame.height == 0:
        raise DataError(f"{path}: holds no rows")
