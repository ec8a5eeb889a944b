"""Accuracy on SUPPORT2: I2MoE, the same backbone without experts, LightGBM and logistic regression on the same rows.

    python -m benchmarks.accuracy [--seeds 0 1 2] [--recipe training/recipes/support2.toml]

Every seed has its own split (70/15/15) and its own initialisation. All four see the same training rows, choose on the same
validation rows and are scored on the same test rows. LightGBM and logistic regression are not calibrated. The last line
is JSON: per model the test metrics of every seed and their mean, with machine and versions.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from service.bundle.schema import CategoricalFeature
from training.data.dataset import Dataset, load_dataset
from training.inference import predict
from training.recipe import Recipe, load_recipe
from training.run import calibrate, make_trainer
from training.tasks import Classification
from training.trainer import Trainer

SHOWN = ("auroc", "auprc", "brier", "ece", "ece_debiased", "accuracy", "f1")
Matrix = NDArray[np.float32]


def flat(dataset: Dataset, split: str) -> tuple[Matrix, NDArray[np.int64]]:
    """All modalities side by side: one (N, columns) matrix, NaN where missing."""
    arrays, target = dataset.part(split)
    return np.concatenate([arrays[name] for name in dataset.schema.names], axis=1), target


def categorical_columns(dataset: Dataset) -> list[int]:
    kinds = [f for modality in dataset.schema.modalities for f, columns in modality.columns() for _ in range(f.width)]
    return [i for i, feature in enumerate(kinds) if isinstance(feature, CategoricalFeature)]


def run_trainer(trainer: Trainer, dataset: Dataset) -> Matrix:
    for _ in trainer.epochs():
        pass
    model = trainer.best_model()
    calibrate(model, dataset)
    return predict(model, dataset.schema, dataset.part("test")[0]).prediction


def i2moe(recipe: Recipe, dataset: Dataset) -> Matrix:
    """The recipe as it is."""
    with tempfile.TemporaryDirectory() as run:
        return run_trainer(make_trainer(recipe, dataset, Path(run)), dataset)


def single_backbone(recipe: Recipe, dataset: Dataset) -> Matrix:
    """The same encoders, backbone and training, but one fusion module and no interaction losses."""
    alone = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"experts": "single"}),
            "objective": recipe.objective.model_copy(update={"interaction_weight": 0.0}),
        }
    )
    return i2moe(alone, dataset)


def logistic_regression(_: Recipe, dataset: Dataset) -> Matrix:
    """Median imputation, standardisation, one-hot categories; ridge strength chosen on validation log loss."""
    (x, y), (x_val, y_val), (x_test, _) = (flat(dataset, split) for split in ("train", "validation", "test"))
    categories = categorical_columns(dataset)
    numbers = [i for i in range(x.shape[1]) if i not in set(categories)]

    def fitted(strength: float) -> Any:
        prepare = ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
                (
                    "categories",
                    make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
                    categories,
                ),
            ]
        )
        return make_pipeline(prepare, LogisticRegression(C=strength, max_iter=5000)).fit(x, y)

    models = [fitted(strength) for strength in (0.01, 0.1, 1.0, 10.0)]
    best = min(models, key=lambda model: Classification.metrics["log_loss"](model.predict_proba(x_val), y_val, dataset.task))
    return best.predict_proba(x_test)


def gradient_boosting(recipe: Recipe, dataset: Dataset) -> Matrix:
    """LightGBM with native categories and missing values, stopped early on validation log loss."""
    (x, y), (x_val, y_val), (x_test, _) = (flat(dataset, split) for split in ("train", "validation", "test"))
    model = lightgbm.LGBMClassifier(
        n_estimators=3000,
        learning_rate=0.02,
        num_leaves=15,
        min_child_samples=40,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=5.0,
        random_state=recipe.train.seed,
        verbose=-1,
    )
    stop = lightgbm.early_stopping(100, verbose=False)
    model.fit(
        x,
        y,
        eval_X=x_val,
        eval_y=y_val,
        eval_metric="binary_logloss",
        categorical_feature=categorical_columns(dataset),
        callbacks=[stop],
    )
    return np.asarray(model.predict_proba(x_test))


def ece_by_chance(prediction: Matrix, dataset: Dataset, num_draws: int = 200) -> float:
    """The ECE that the same predictions would get if they were perfectly calibrated: outcomes drawn from them."""
    generator = np.random.default_rng(0)
    draws = [(generator.random(len(prediction)) < prediction[:, 1]).astype(np.int64) for _ in range(num_draws)]
    return float(np.mean([Classification.metrics["ece"](prediction, outcome, dataset.task) for outcome in draws]))


MODELS: dict[str, Callable[[Recipe, Dataset], Matrix]] = {
    "i2moe": i2moe,
    "single_backbone": single_backbone,
    "lightgbm": gradient_boosting,
    "logistic_regression": logistic_regression,
}


def measure(recipe_path: Path, seed: int) -> dict[str, dict[str, float]]:
    recipe = load_recipe(recipe_path, [f"train.seed={seed}"])
    dataset = load_dataset(recipe.data, recipe_path.parent.absolute(), seed=seed, missing=recipe.model.missing)
    _, target = dataset.part("test")
    results = {}
    for name, model in MODELS.items():
        started = time.monotonic()
        prediction = model(recipe, dataset)
        seconds = round(time.monotonic() - started, 1)
        results[name] = {m: round(Classification.metrics[m](prediction, target, dataset.task), 4) for m in SHOWN}
        results[name] |= {"ece_chance": round(ece_by_chance(prediction, dataset), 4), "seconds": seconds}
        print(
            f"seed {seed}  {name:<20}" + "  ".join(f"{k} {v:.4f}" for k, v in results[name].items()), file=sys.stderr, flush=True
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/support2.toml"))
    args = parser.parse_args()
    runs = [measure(args.recipe, seed) for seed in args.seeds]
    figures = (*SHOWN, "ece_chance", "seconds")
    models = {
        name: {
            "mean": {f: round(float(np.mean([r[name][f] for r in runs])), 4) for f in figures},
            "seeds": [r[name] for r in runs],
        }
        for name in MODELS
    }
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    versions = {"python": platform.python_version()} | {p: version(p) for p in ("torch", "lightgbm", "scikit-learn", "numpy")}
    print(json.dumps({"benchmark": "accuracy", "seeds": args.seeds, "models": models, "machine": machine, "versions": versions}))


if __name__ == "__main__":
    main()
