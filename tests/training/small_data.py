"""A small learnable hospital: four modalities of every kind of feature, an outcome that creatinine and a code decide.

Everything is drawn from one seed. `document()` is a complete recipe as a TOML document; its changes are given as
`{"train.epochs": 2}`.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from service.bundle.schema import FeatureSchema
from service.bundle.table_files import read_table
from service.bundle.tables import table_records
from training.recipe import Recipe, parse_recipe

NUM_ROWS = 120
MODEL_CARD = dict.fromkeys(["intended_use", "population", "exclusions", "limits", "data", "licence"], "tests")
TINY_ENCODER = {"kind": "feature", "embedding_dim": 4, "num_bins": 4, "num_frequencies": 2}

TWO_MODALITIES: dict[str, Any] = {
    "labs": {"numeric": ["crea", "sod"], "units": {"crea": "mg/dL"}},
    "person": {"numeric": ["age"], "categorical": ["sex", "ward"]},
}
ALL_MODALITIES: dict[str, Any] = TWO_MODALITIES | {
    "papers": {"codes": {"column": "codes", "min_count": 3}, "text": {"column": "note", "min_count": 3}},
    "signal": {"array": "signal.npy"},
}

_BASE: dict[str, Any] = {
    "name": "small",
    "data": {
        "path": "table.csv",
        "label": "outcome",
        "task": "binary",
        "labels": ["alive", "dead"],
        "split": {"validation": 0.2, "test": 0.2, "seed": 0},
    },
    "model": {
        "hidden_dim": 8,
        "num_patches": 2,
        "num_layers": 1,
        "num_heads": 2,
        "dropout": 0.1,
        "reweighting": {"hidden_dim": 8, "dropout": 0.1},
        "encoders": {"default": TINY_ENCODER},
    },
    "objective": {"kind": "paper", "interaction_weight": 0.05},
    "train": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, "num_bootstraps": 20, "device": "cpu"},
    "model_card": MODEL_CARD,
}


def document(changes: Mapping[str, Any] | None = None, *, modalities: Mapping[str, Any] = TWO_MODALITIES) -> dict[str, Any]:
    """A recipe's document with some keys changed; None removes a key."""
    changed = deepcopy(_BASE)
    changed["data"]["modalities"] = deepcopy(dict(modalities))
    for path, value in (changes or {}).items():
        *sections, leaf = path.split("/") if "/" in path else path.split(".")
        table = changed
        for section in sections:
            table = table.setdefault(section, {})
        if value is None:
            table.pop(leaf, None)
        else:
            table[leaf] = value
    return changed


def recipe(changes: Mapping[str, Any] | None = None, *, modalities: Mapping[str, Any] = TWO_MODALITIES) -> Recipe:
    """The same, read."""
    return parse_recipe(document(changes, modalities=modalities), "recipe")


def small_table(*, num_rows: int = NUM_ROWS, seed: int = 0) -> pl.DataFrame:
    """The table as text, as a csv holds it; every feature has gaps, and no row lacks all of them."""
    generator = np.random.default_rng(seed)
    crea, sod = generator.lognormal(0, 0.5, num_rows), generator.normal(140, 4, num_rows)
    age = generator.integers(20, 95, num_rows)
    chronic = generator.random(num_rows) < 0.4
    dead = (2 * np.log(crea) + 2 * chronic - 0.8 + 0.2 * generator.normal(size=num_rows)) > 0
    words = np.where(chronic, "chronic kidney failure", "healthy heart")
    fillers = np.array(["stable overnight", "seen by team", "no complaints"])[generator.integers(3, size=num_rows)]
    columns: dict[str, list[str | None]] = {
        "patient": [f"p{i // 2}" for i in range(num_rows)],
        "outcome": [str(int(d)) for d in dead],
        "crea": _gaps([f"{v:.3f}" for v in crea], generator),
        "sod": _gaps([f"{v:.1f}" for v in sod], generator),
        "age": [str(v) for v in age],
        "sex": _gaps(list(np.where(generator.random(num_rows) < 0.5, "male", "female")), generator),
        "ward": _gaps(list(np.array(["007", "010", "7"])[generator.integers(3, size=num_rows)]), generator),
        "codes": _gaps([("0038|I10" if c else "I10") for c in chronic], generator),
        "note": _gaps([f"{w}, {f}" for w, f in zip(words, fillers, strict=True)], generator),
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def small_signal(*, num_rows: int = NUM_ROWS, seed: int = 0) -> np.ndarray[Any, Any]:
    """The row-aligned array (N, 2, 3), some rows missing."""
    generator = np.random.default_rng(seed + 1)
    signal = generator.normal(3, 2, (num_rows, 2, 3)).astype(np.float32)
    signal[generator.random(num_rows) < 0.1] = np.nan
    return signal


def write_data(folder: Path, *, num_rows: int = NUM_ROWS, seed: int = 0) -> Path:
    """table.csv and signal.npy in a folder; answers the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    small_table(num_rows=num_rows, seed=seed).write_csv(folder / "table.csv")
    np.save(folder / "signal.npy", small_signal(num_rows=num_rows, seed=seed))
    return folder


def records(folder: Path, schema: FeatureSchema) -> list[dict[str, Any]]:
    """The rows of a folder of `write_data` with all modalities, as a client would send them."""
    table = table_records(read_table(folder / "table.csv"), schema)
    return [row | {"signal": {"signal": array}} for row, array in zip(table, np.load(folder / "signal.npy"), strict=True)]


def write_recipe(
    folder: Path, changes: Mapping[str, Any] | None = None, *, modalities: Mapping[str, Any] = TWO_MODALITIES
) -> Path:
    """Data and recipe.toml in a folder; answers the recipe's path."""
    if not (folder / "table.csv").exists():
        write_data(folder)
    path = folder / "recipe.toml"
    path.write_text(to_toml(document(changes, modalities=modalities)))
    return path


def to_toml(table: Mapping[str, Any]) -> str:
    """A document as TOML; JSON spells strings, numbers and lists as TOML does."""
    return "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in table.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return json.dumps(value)


def _gaps(values: list[Any], generator: np.random.Generator) -> list[Any]:
    return [None if missing else str(value) for value, missing in zip(values, generator.random(len(values)) < 0.1, strict=True)]
