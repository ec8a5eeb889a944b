"""One planted data set through the project's own training: recipe, data loading, trainer, calibration, prediction.

Every run has the same configuration, whatever the data set and the objective: what differs is what `train_once` is given.
"""

import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, explain
from training.data.dataset import Dataset, load_dataset
from training.data.planted import PlantedConfig, PlantedData, generate
from training.inference import predict
from training.model.mixture import I2MoE
from training.recipe import Recipe, parse_recipe, set_value
from training.run import calibrate, make_trainer
from training.stages import train_stages
from training.tasks import make_task

TABLE = "table.parquet"
SPLIT = {"train": 0.6, "validation": 0.15, "test": 0.25}

# The one configuration. No dropout in the experts: rows are not scarce, and it takes a third of the time. Selection by log
# loss, because AUROC is 1 within a few epochs on easy data and would keep the first of them.
RECIPE: Mapping[str, Any] = {
    "name": "planted",
    "model": {
        "fusion": "transformer",
        "hidden_dim": 32,
        "num_patches": 2,
        "num_layers": 1,
        "num_heads": 4,
        "dropout": 0.0,
        "reweighting": {"hidden_dim": 32, "num_layers": 2, "dropout": 0.1},
        "encoders": {"default": {"kind": "mlp", "hidden": 64, "num_layers": 2}},
    },
    "objective": {},
    "train": {"epochs": 20, "batch_size": 128, "learning_rate": 0.003, "patience": 20, "device": "cpu", "num_bootstraps": 0},
}
SELECTION = {"classification": "log_loss", "regression": "rmse"}
SCORE = {"classification": "accuracy", "regression": "r2"}


@dataclass(frozen=True, slots=True)
class PlantedRun:
    """A trained model's answers on the test rows of a planted data set. Row i of everything belongs together."""

    experts: tuple[str, ...]  # names, in the order of every axis E
    explanation: Explanation  # of N test rows, as the service explains them
    truth: NDArray[np.str_]  # (N,), the true expert's name
    metrics: Mapping[str, float]
    ceiling: float  # what the answer before label noise scores in SCORE's metric; signal noise may keep it out of reach
    seconds: float  # data, training and prediction


def planted_recipe(config: PlantedConfig, overrides: Mapping[str, Any], seed: int) -> Recipe:
    """The one configuration for a data set, with recipe values set by `section.key`. Raises `RecipeError`."""
    document = deepcopy(dict(RECIPE))
    document["data"] = {
        "path": TABLE,
        "label": "label",
        "task": "binary" if config.task == "classification" else "regression",
        "split": {"column": "split"},
        "modalities": {name: {"array": f"{name}.npy"} for name in config.modalities},
    }
    values = {"train.seed": seed, "train.selection": SELECTION[config.task], **overrides}
    for key, value in values.items():
        set_value(document, key, value)
    return parse_recipe(document, "planted")


def write_data(data: PlantedData, folder: Path) -> None:
    """A table of label and split, and one .npy file per modality. Rows are independent, so the first ones train."""
    bounds = np.round(np.cumsum(list(SPLIT.values())) * len(data.target)).astype(int)
    split = np.array(list(SPLIT))[np.searchsorted(bounds, np.arange(len(data.target)), side="right")]
    pl.DataFrame({"label": data.target, "split": split}).write_parquet(folder / TABLE)
    for name, array in data.arrays.items():
        np.save(folder / f"{name}.npy", array)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small models are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(recipe: Recipe, data: PlantedData) -> tuple[I2MoE, Dataset]:
    """A calibrated model, and the rows as the project reads them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(data, folder)
        dataset = load_dataset(recipe.data, folder, seed=recipe.train.seed, missing=recipe.model.missing)
        trainer = make_trainer(recipe, dataset, folder)
        model = train_stages(trainer, recipe, dataset, folder, lambda stage: deque(stage.epochs(), maxlen=0)).model
    calibrate(model, dataset)
    return model, dataset


def explain_rows(model: I2MoE, dataset: Dataset, split: str = "test") -> tuple[Explanation, dict[str, float]]:
    """One split's rows as the service would explain them, and their metrics."""
    arrays, target = dataset.part(split)
    output = predict(model, dataset.schema, arrays)
    info = model.calibration.info(num_rows=len(dataset.splits["validation"]))
    return explain(output, dataset.task, info), make_task(dataset.task).measure(output.prediction, target)


def ceiling(config: PlantedConfig, data: PlantedData, rows: NDArray[np.intp]) -> float:
    """The score of the answers before label noise."""
    clean, target = data.clean[rows], data.target[rows]
    if config.task == "classification":
        return float((clean == target).mean())
    return float(1 - np.square(target - clean).sum() / np.square(target - target.mean()).sum())


def train_once(config: PlantedConfig, overrides: Mapping[str, Any], *, seed: int, data_seed: int = 0) -> PlantedRun:
    """Train on one planted data set and explain its test rows. `seed` is the training's; `data_seed` draws the rows."""
    started = time.monotonic()
    data = generate(config, data_seed)
    with one_thread():
        model, dataset = train(planted_recipe(config, overrides, seed), data)
        explanation, metrics = explain_rows(model, dataset)
    rows = dataset.splits["test"]
    return PlantedRun(
        experts=tuple(role.name for role in model.roles),
        explanation=explanation,
        truth=data.truth[rows],
        metrics=metrics,
        ceiling=ceiling(config, data, rows),
        seconds=time.monotonic() - started,
    )
