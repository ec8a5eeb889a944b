"""A whole run: data, model, training, calibration, evaluation, report, and the files that stay."""

import platform
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.embedding import copy_encoders, encoder_files
from service.bundle.schema import FeatureSchema
from training import distributed
from training.batches import training_rows
from training.checkpoint import (
    CHECKPOINT_FILE,
    FIRST_STAGE,
    METRICS_FILE,
    REPORT_FILE,
    STATE_FILE,
    Checkpoint,
    save_checkpoint,
)
from training.data.dataset import Dataset, load_dataset
from training.errors import RecipeError, RunError
from training.evaluation import Evaluation, evaluate_rows, write_metrics
from training.inference import predict
from training.model.build import build_model, fit_encoders
from training.model.mixture import I2MoE
from training.objectives.config import ObjectiveConfig
from training.objectives.paper import PaperObjective
from training.progress import show_notes, show_progress
from training.recipe import RECIPE_FILE, Recipe, read_recipe
from training.reference import reference, typical_record
from training.report import write_report
from training.stages import Trained, remove_states, train_stages
from training.tasks import Task, make_task
from training.trainer import Trainer
from training.uncertainty.assessment import assess_run
from training.validity.rows_file import explained_rows, save_rows


def class_weights(config: ObjectiveConfig, task: Task, target: NDArray[Any]) -> Tensor | None:
    """The task loss's class weights (C,): none, as given, or by inverse training frequency. Raises `RecipeError`."""
    if config.class_weights is None:
        return None
    if config.class_weights == "balanced":
        return task.balanced_weights(target)
    num_labels = len(task.info.labels)
    if len(config.class_weights) != num_labels:
        raise RecipeError(f"objective.class_weights: expected {num_labels} numbers, found {len(config.class_weights)}")
    return torch.tensor(config.class_weights, dtype=torch.float32)


def make_trainer(recipe: Recipe, dataset: Dataset, run: Path) -> Trainer[I2MoE]:
    """A trainer at its first epoch: seeded model, fitted encoders, objective."""
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe.model, dataset.schema, dataset.task)
    arrays, target = dataset.part("train")
    fit_encoders(model, [training_rows(arrays[name]) for name in dataset.schema.names])
    if model.units is not None:
        model.units.fit(torch.from_numpy(target))
    task = make_task(dataset.task)
    weights_C = class_weights(recipe.objective, task, target)
    objective = PaperObjective(recipe.objective, task, dataset.schema.names, weights_C, selection=recipe.train.selection)
    rate = recipe.model.modality_dropout if recipe.model.missing == "learned" else 0.0
    return Trainer(model, objective, dataset, recipe.train, modality_dropout=rate, run=run)


def calibrate(model: I2MoE, dataset: Dataset, *, workers: int = 0) -> None:
    """Fit the model's calibration on the validation rows; `workers` read lazy ones ahead."""
    arrays, target = dataset.part("validation")
    logits = torch.from_numpy(predict(model, dataset.schema, arrays, workers=workers).logits.copy())
    model.calibration.fit(logits, torch.from_numpy(target))


def _provenance(recipe: Recipe, dataset: Dataset, trainer: Trainer[I2MoE], trained: Trained, seconds: float) -> dict[str, Any]:
    decomposition = {"decomposition": trained.decomposition} if trained.decomposition else {}
    return {
        "seed": recipe.train.seed,
        "num_rows": {name: len(rows) for name, rows in dataset.splits.items()},
        "notes": list(dataset.notes),
        "classes": list(dataset.classes),
        "selection": trainer.objective.selection,
        "best_epoch": trainer.state.best_epoch,
        "epochs": trainer.state.next_epoch,
        "training_seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        **decomposition,
    }


def _prepare_folder(recipe: Recipe, schema: FeatureSchema, out: Path, *, resume: bool) -> None:
    """Make RUN, or check that it is the same run. Raises `RunError`."""
    recipe_path = out / RECIPE_FILE
    if resume:
        if recipe_path.exists() and read_recipe(out) != recipe:
            raise RunError(f"{out}: was started with another recipe; use another folder or the same recipe and --set values")
        if recipe_path.exists() and (changed := [name for name in encoder_files(schema) if not (out / name).exists()]):
            raise RunError(f"{out}: was started with another text encoder: expected {changed[0]} there, found none")
    elif out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty; add --resume to continue that run, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    copy_encoders(schema, out)
    recipe_path.write_text(recipe.model_dump_json(indent=1))


def _tell(trainer: Trainer[Any], recipe: Recipe) -> None:
    """Run all epochs of a stage where others may see them; of several stages each is named."""
    stage = None if recipe.objective.kind == "paper" else trainer.stage
    first_epoch, silent = trainer.state.next_epoch, not distributed.is_first()
    show_progress(trainer.epochs(), trainer.config, first_epoch=first_epoch, silent=silent, stage=stage)


def fit(recipe: Recipe, folder: Path, out: Path, *, resume: bool = False) -> dict[str, Evaluation]:
    """Train `recipe` (whose relative paths start at `folder`) into the run folder `out`.

    Leaves checkpoint.pt, metrics.json, report.html, recipe.json and the files of text encoders there, and answers the
    evaluations of validation and test; of several processes the first alone does, the others answer nothing. Raises
    `TrainingError`; on Ctrl-C the last whole epoch stays and `resume` continues from it.
    """
    started = time.monotonic()
    with distributed.process_group(recipe.train.device):
        is_first = distributed.is_first()
        dataset = load_dataset(recipe.data, folder, seed=recipe.train.seed, missing=recipe.model.missing)
        if resume and (out / CHECKPOINT_FILE).exists() and not (out / STATE_FILE).exists():
            raise RunError(f"{out}: this run is complete; nothing to resume")
        trainer = make_trainer(recipe, dataset, out)
        # After all that can be wrong with a recipe, which leaves no folder then.
        distributed.first_says(lambda: _prepare_folder(recipe, dataset.schema, out, resume=resume))
        if resume:
            trainer.resume()
        if is_first:
            show_notes(dataset.notes)
        trained = train_stages(trainer, recipe, dataset, out, partial(_tell, recipe=recipe))
    if not is_first:
        return {}
    calibrate(trained.model, dataset, workers=recipe.train.workers)
    provenance = _provenance(recipe, dataset, trainer, trained, time.monotonic() - started)
    checkpoint = Checkpoint(trained.model, recipe, dataset.schema, dataset.task, provenance)
    return finish(checkpoint, dataset, trained.histories, out)


def finish(
    checkpoint: Checkpoint, dataset: Dataset, histories: Mapping[str, list[dict[str, Any]]], out: Path
) -> dict[str, Evaluation]:
    """Evaluate, report and write the run's lasting files; the training state goes last, when all else is safe.

    In metrics.json "history" are the epochs of the first stage, and "stages" by name those of the others, if there are any.
    """
    evaluations = {
        split: evaluate_rows(checkpoint, *dataset.part(split), split, with_validity=split == "test")
        for split in ("validation", "test")
    }
    test_arrays, _ = dataset.part("test")
    train_arrays, _ = dataset.part("train")
    experts = checkpoint.model.roles
    uncertainty = assess_run(checkpoint, dataset, evaluations)
    history = histories[FIRST_STAGE]
    later = {stage: epochs for stage, epochs in histories.items() if stage != FIRST_STAGE}
    document = {
        "model": checkpoint.recipe.name,
        "provenance": dict(checkpoint.provenance) | {"validity_seconds": round(evaluations["test"].validity_seconds, 1)},
        "splits": {split: evaluation.document() for split, evaluation in evaluations.items()},
        "uncertainty": uncertainty.document(),
        "example": typical_record(train_arrays, checkpoint.schema),
        "reference": reference(evaluations["test"].output, test_arrays, checkpoint.schema, checkpoint.task, experts),
        "history": history,
        **({"stages": later} if later else {}),
    }
    save_checkpoint(checkpoint, out)
    write_metrics(document, out / METRICS_FILE)
    if (test := evaluations["test"]).validity is not None:
        save_rows(explained_rows(test.output, test.target, dataset.splits["test"], checkpoint.task), out)
    write_report(checkpoint, dataset, evaluations, history, out / REPORT_FILE, uncertainty=uncertainty)
    remove_states(out)
    return evaluations
