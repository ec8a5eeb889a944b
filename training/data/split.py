"""Which rows train, validate and test: stratified by class, never splitting a group. On request some do nothing of it.

Those are the conformal rows: prediction sets and intervals are guaranteed only by rows that had no part in making the model,
neither its weights nor the choice of its epoch nor its calibration (Vovk, Gammerman and Shafer 2005). They are drawn last and
from the training rows, so that validation and test rows are the same with and without them.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

from training.data.config import SplitConfig
from training.errors import DataError

Rows = NDArray[np.intp]
SPLITS = ("train", "validation", "test")
CONFORMAL = "conformal"


def split_rows(
    frame: pl.DataFrame, target: NDArray[np.int64], config: SplitConfig, *, group: str | None, seed: int
) -> dict[str, Rows]:
    """Row positions of the three splits, and of conformal where asked for. Raises `DataError` when one would be empty.

    The three must hold every class; conformal rows may lack one, whose predictions then cannot be ruled out.

    Groups, not rows, are drawn (a row without a group column is its own group), stratified by each group's largest
    class, so that rows of one group always stay together. Of each group among the conformal rows one row is kept, drawn at
    random, and the others are not used: rows of one patient resemble each other, and only one row each makes a row of a new
    patient exchangeable with them (subsampling, Dunn, Wasserman and Ramdas 2023).
    """
    groups = _group_ids(frame, group)
    if config.column is not None:
        splits = _by_column(frame.get_column(config.column))
        _refuse_divided_groups(splits, groups, group)
    else:
        splits = _by_fractions(groups, target, config, seed)
    if CONFORMAL in splits:
        splits[CONFORMAL] = _one_row_per_group(splits[CONFORMAL], groups, _split_seed(config, seed))
    _check(splits, target)
    return splits


def _one_row_per_group(rows: Rows, groups: NDArray[np.int64], seed: int) -> Rows:
    shuffled = np.random.default_rng(seed).permutation(rows)
    return np.sort(shuffled[np.unique(groups[shuffled], return_index=True)[1]])


def _by_column(column: pl.Series) -> dict[str, Rows]:
    values = column.cast(pl.String).fill_null("").to_numpy()
    if unknown := sorted(set(values.tolist()) - {*SPLITS, CONFORMAL}):
        raise DataError(f"split column {column.name}: expected {', '.join(SPLITS)}, found {', '.join(map(repr, unknown[:5]))}")
    names = (*SPLITS, CONFORMAL) if CONFORMAL in values else SPLITS
    return {name: np.flatnonzero(values == name) for name in names}


def _refuse_divided_groups(splits: Mapping[str, Rows], groups: NDArray[np.int64], group: str | None) -> None:
    split_of = np.full(groups.max() + 1, -1)
    for number, rows in enumerate(splits.values()):
        if (divided := np.isin(split_of[groups[rows]], (-1, number), invert=True)).any():
            raise DataError(f"split: the split column puts {len(set(groups[rows][divided]))} groups of {group} into two splits")
        split_of[groups[rows]] = number


def _group_ids(frame: pl.DataFrame, group: str | None) -> NDArray[np.int64]:
    if group is None:
        return np.arange(frame.height)
    column = frame.get_column(group)
    if column.null_count():
        raise DataError(f"group column {group}: {column.null_count()} of {len(column)} rows have no value")
    return np.unique(column.to_numpy(), return_inverse=True)[1]


def _by_fractions(groups: NDArray[np.int64], target: NDArray[np.int64], config: SplitConfig, seed: int) -> dict[str, Rows]:
    assert config.validation is not None
    group_class = np.zeros(groups.max() + 1, np.int64)
    np.maximum.at(group_class, groups, target)
    split_seed = _split_seed(config, seed)
    if config.folds is not None:
        rest, test = _fold(group_class, config.folds, seed % config.folds, split_seed)
    else:
        rest, test = _draw(np.arange(len(group_class)), group_class, config.test_fraction, split_seed)
    train, validation = _draw(rest, group_class, config.validation / (1 - config.test_fraction), split_seed)
    parts = {"train": train, "validation": validation, "test": test}
    if config.conformal is not None:
        left = 1 - config.test_fraction - config.validation
        parts["train"], parts[CONFORMAL] = _draw(train, group_class, config.conformal / left, split_seed)
    return {name: np.flatnonzero(np.isin(groups, part)) for name, part in parts.items()}


def _split_seed(config: SplitConfig, seed: int) -> int:
    base = seed if config.seed == "run" else config.seed
    return base + seed // config.folds if config.folds is not None else base


def _fold(group_class: NDArray[np.int64], folds: int, fold: int, seed: int) -> tuple[Rows, Rows]:
    if (smallest := np.unique_counts(group_class).counts.min()) < folds:
        raise DataError(f"split: {folds} folds need as many groups of rows in every class, found {smallest}")
    division = StratifiedKFold(folds, shuffle=True, random_state=seed).split(group_class, group_class)
    return list(division)[fold]


def _draw(groups: NDArray[np.int64], group_class: NDArray[np.int64], fraction: float, seed: int) -> tuple[Rows, Rows]:
    try:
        rest, drawn = train_test_split(groups, test_size=fraction, stratify=group_class[groups], random_state=seed)
    except ValueError as error:
        raise DataError(f"split: {len(groups)} groups of rows cannot be divided at {fraction:.3g}: {error}") from error
    return rest, drawn


def _check(splits: Mapping[str, Rows], target: NDArray[np.int64]) -> None:
    classes = set(np.unique(target).tolist())
    for name, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"split: {name} is empty; all {len(target)} rows went elsewhere")
        if name != CONFORMAL and (absent := classes - set(np.unique(target[rows]).tolist())):
            raise DataError(f"split: {name} ({len(rows)} rows) holds no row of class {sorted(absent)}")
