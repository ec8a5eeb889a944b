"""The reference work of the speed benchmarks: the released MIMIC-IV shape with random weights and rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.bundle import export_bundle, run_material
from service.bundle.features import ArrayFeature
from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.store import Bundle, open_bundle
from training.data.dataset import Dataset
from training.recipe import Recipe, parse_recipe
from training.run import fit

NAMES = ("lab", "note", "code")
TABLE = "rows.parquet"
CLASS_WEIGHTS = (0.25, 0.75)
INTERACTION_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; those of the released MIMIC-IV script by default."""

    columns: tuple[int, ...] = (256, 768, 512)
    hidden_dim: int = 128
    num_patches: int = 4
    num_layers: int = 2
    num_heads: int = 4
    num_labels: int = 2
    reweighting_hidden: int = 256
    reweighting_layers: int = 3
    dropout: float = 0.5

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities: the released script's, and more of them by number."""
        more = (f"modality_{i}" for i in range(len(NAMES), len(self.columns)))
        return (*NAMES, *more)[: len(self.columns)]


def rows(shape: Shape, num_rows: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Random inputs (N, columns) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(num_rows, columns, generator=generator) for columns in shape.columns]
    return inputs, torch.randint(shape.num_labels, (num_rows,), generator=generator)


def arrays(shape: Shape, num_rows: int) -> dict[str, NDArray[np.float32]]:
    """The inputs of `rows` by modality, as the graph reads them."""
    inputs, _ = rows(shape, num_rows)
    return {name: x.numpy() for name, x in zip(shape.names, inputs, strict=True)}


def recipe(shape: Shape, train: dict[str, Any]) -> Recipe:
    """The released script as a recipe, trained by the values `train`."""
    document = {
        "name": "reference",
        "data": {
            "path": TABLE,
            "label": "y",
            "task": "binary",
            "split": {"column": "split"},
            "modalities": {name: {"array": f"{name}.npy"} for name in shape.names},
        },
        "model": {
            "fusion": "transformer",
            "hidden_dim": shape.hidden_dim,
            "num_patches": shape.num_patches,
            "num_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "dropout": shape.dropout,
            "missing": "reject",
            "reweighting": {"hidden_dim": shape.reweighting_hidden, "num_layers": shape.reweighting_layers, "dropout": 0.5},
            "encoders": {"default": {"kind": "patch"}},
        },
        "objective": {"kind": "paper", "interaction_weight": INTERACTION_WEIGHT, "class_weights": list(CLASS_WEIGHTS)},
        "train": {"learning_rate": 1e-4, "weight_decay": 0.0, "device": "cpu", "num_bootstraps": 0, **train},
        "validity": {"enabled": False},
    }
    return parse_recipe(document, "benchmark")


def dataset(shape: Shape, num_rows: int) -> Dataset:
    """Random rows in memory, all of them in every split."""
    _, labels = rows(shape, num_rows)
    modalities = tuple(
        Modality(name=name, features=(ArrayFeature(name=name, shape=(columns,)),))
        for name, columns in zip(shape.names, shape.columns, strict=True)
    )
    return Dataset(
        schema=FeatureSchema(modalities=modalities, missing="reject"),
        task=TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death"),
        arrays=arrays(shape, num_rows),
        target=labels.numpy(),
        splits={name: np.arange(num_rows) for name in ("train", "validation", "test")},
        notes=(),
    )


def bundle(folder: Path, shape: Shape | None = None) -> Bundle:
    """The exported model, trained for one step; made once and then found in `folder`."""
    if (folder / "bundle" / "manifest.json").exists():
        return open_bundle(folder / "bundle")
    folder.mkdir(parents=True, exist_ok=True)
    data = dataset(shape or Shape(), 96)
    split = np.resize(["train", "validation", "test"], 96)
    pl.DataFrame({"y": data.target, "split": split}).write_parquet(folder / TABLE)
    for name, array in data.arrays.items():
        np.save(folder / f"{name}.npy", array)
    fit(recipe(shape or Shape(), {"epochs": 1, "batch_size": 32}), folder, folder / "run")
    return export_bundle(run_material(folder / "run"), folder / "bundle")
