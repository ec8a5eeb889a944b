"""Everything that reads a file from outside, by a name: what a user runs, down to what is done with a file that is let in.

Each answers a command's exit status, 0 or 1, and tells in the second case why on standard error, as commands do.
"""

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path

import numpy as np
import polars as pl

from export.__main__ import main as export_main
from export.bundle import run_material
from export.errors import ExportError
from export.released import released_material
from service.access.keys import Keys, KeysError
from service.api.loading import load_model
from service.api.openapi import build_openapi
from service.api.settings import Settings
from service.bundle.__main__ import main as bundle_main
from service.bundle.choose import find_bundle
from service.bundle.errors import BundleError, InferenceError, InvalidRecordError
from training.__main__ import main as training_main
from training.data.dataset import load_dataset
from training.data.mimic_iv.tables import Tables
from training.errors import TrainingError
from training.recipe import load_recipe
from training.run import make_trainer
from training.sweep import parse_grid, read_variants, runs

Read = Callable[..., int]


def _told(*errors: type[Exception]) -> Callable[[Callable[..., object]], Read]:
    """A function that may raise these errors, as a command."""

    def wrapped(function: Callable[..., object]) -> Read:
        @wraps(function)
        def read(*arguments: str) -> int:
            try:
                function(*arguments)
            except errors as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            return 0

        return read

    return wrapped


@_told(BundleError, InferenceError, InvalidRecordError)
def _serve(folder: str, version: str | None = None) -> None:
    """What a service does with the bundle that it finds, up to its answers about it."""
    found = find_bundle(Path(folder), version)
    settings = Settings(bundle=found.path, num_threads=2, max_batch_size=4, provider="cpu")
    bundle, predictor = load_model(found.path, settings)
    bundle.reference()
    build_openapi(bundle.manifest)
    rows = bundle.manifest.features.encode_many([bundle.manifest.example.record])
    if bundle.attribution_path is not None:
        label = np.eye(len(bundle.manifest.task.labels), dtype=np.float32)[:1]
        predictor.attribute(rows, label)


@_told(KeysError)
def _keys(path: str) -> None:
    keys = Keys(Path(path))
    keys.find("i2moe_nobody")
    for entry in keys._entries:
        for _ in range(3):
            keys.wait_s(entry)


@_told(TrainingError)
def _recipe(path: str, *overrides: str) -> None:
    load_recipe(Path(path), overrides)


@_told(TrainingError)
def _trainer(path: str) -> None:
    recipe, folder = load_recipe(Path(path)), Path(path).parent
    dataset = load_dataset(recipe.data, folder, seed=recipe.train.seed, missing=recipe.model.missing)
    make_trainer(recipe, dataset, folder / "run")


@_told(TrainingError)
def _variants(recipe: str, variants: str) -> None:
    runs(Path(recipe), parse_grid([], read_variants(Path(variants))), [0], Path("out"), ())


@_told(TrainingError)
def _mimic(root: str) -> None:
    """A table in both ways: whole, and as a stream into a cache."""
    columns = {"subject_id": pl.Int64, "charttime": pl.Datetime, "valuenum": pl.Float64, "valueuom": pl.String}
    Tables(Path(root)).read("labevents", columns)
    Tables(Path(root), Path("cache")).scan("labevents", columns)


@_told(ExportError, TrainingError)
def _run(folder: str) -> None:
    run_material(Path(folder))


@_told(ExportError, TrainingError)
def _released(checkpoint: str, config: str) -> None:
    released_material(Path(checkpoint), Path(config))


def _bundle_command(*arguments: str) -> int:
    return bundle_main(arguments)


def _training_command(*arguments: str) -> int:
    return training_main(arguments)


def _export_command(*arguments: str) -> int:
    return export_main(arguments)


READERS: Mapping[str, Read] = {
    "bundle": _bundle_command,
    "serve": _serve,
    "keys": _keys,
    "recipe": _recipe,
    "trainer": _trainer,
    "variants": _variants,
    "mimic": _mimic,
    "run": _run,
    "released": _released,
    "training": _training_command,
    "export": _export_command,
}


def warm_up() -> None:
    """Let libraries take the memory that they take once."""
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
    pl.DataFrame({"a": [1, 2]}).lazy().collect()
    onnxruntime.get_available_providers()
