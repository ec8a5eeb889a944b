"""A run's files: written atomically, loaded without pickle, and sufficient to rebuild the model.

checkpoint.pt holds weights, recipe, feature schema, task and versions: everything export needs.
A model that embeds texts has graph and tokenizer of its encoder beside it, which checkpoint.pt names by their sha256.
training_state.pt holds what `--resume` needs, one file for each stage of a training that has several; they are removed when
the run is complete.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from service.bundle.embedding import find_encoders
from service.bundle.errors import shortened
from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema
from training.config import sentence
from training.errors import RecipeError, RunError
from training.model.build import build_model
from training.model.mixture import I2MoE
from training.recipe import Recipe

CHECKPOINT_FILE = "checkpoint.pt"
STATE_FILE = "training_state.pt"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
CHECKPOINT_FORMAT = 1
_MAX_TOLD = 100  # characters of what was found
FIRST_STAGE = "task"  # the only one of most trainings


class _Provenance(BaseModel):
    """What readers of a checkpoint need of its provenance; the rest is told as it stands."""

    model_config = ConfigDict(extra="allow")

    classes: list[str]
    num_rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained model and everything it was made from."""

    model: I2MoE  # in evaluation mode
    recipe: Recipe
    schema: FeatureSchema
    task: TaskInfo
    provenance: Mapping[str, Any]  # versions, seed, row counts, notes, calibration rows


def state_file(stage: str) -> str:
    """Where the state of a stage lies in its run's folder."""
    return STATE_FILE if stage == FIRST_STAGE else f"training_state.{stage}.pt"


def save_atomically(document: Mapping[str, Any], path: Path) -> None:
    """torch.save to a temporary file, flushed to disk, then renamed: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(document), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_tensors(path: Path) -> Any:
    """Read a file of torch.save that holds tensors and plain values; anything else is refused. Raises `RunError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file makes torch stumble in many ways
        raise RunError(f"{path}: is damaged or not a checkpoint ({type(error).__name__})") from error


def load_document(path: Path) -> dict[str, Any]:
    """Read a file of `save_atomically`. Raises `RunError`."""
    document = load_tensors(path)
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if type(found) is not int or found != CHECKPOINT_FORMAT:
        raise RunError(f"{path}: expected checkpoint format {CHECKPOINT_FORMAT}, found {shortened(repr(found), _MAX_TOLD)}")
    return document


def save_checkpoint(checkpoint: Checkpoint, run: Path) -> None:
    """Write RUN/checkpoint.pt."""
    document = {
        "format": CHECKPOINT_FORMAT,
        "weights": checkpoint.model.state_dict(),
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "schema": checkpoint.schema.model_dump(mode="json"),
        "task": checkpoint.task.model_dump(mode="json"),
        "provenance": dict(checkpoint.provenance),
    }
    save_atomically(document, run / CHECKPOINT_FILE)


def _check_sizes(weights: Mapping[str, Tensor], recipe: Recipe, schema: FeatureSchema, task: TaskInfo) -> None:
    """Compare weights with the model that they are for, before there is any memory for it. Raises `ValueError`.

    A component of a user's own that looks at its numbers while it is built cannot be described, and is built unseen.
    """
    try:
        with torch.device("meta"):
            described = build_model(recipe.model, schema, task).state_dict()
    except RecipeError:
        return
    expected, found = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (described, weights))
    if wrong := next((name for name in {**expected, **found} if expected.get(name) != found.get(name)), None):
        raise ValueError(f"weights {wrong}: expected shape {expected.get(wrong)}, found {found.get(wrong)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_checkpoint(run: Path) -> Checkpoint:
    """Rebuild the model of RUN/checkpoint.pt. Raises `RunError`."""
    path = run / CHECKPOINT_FILE
    document = load_document(path)
    try:
        recipe = Recipe.model_validate(document["recipe"])
        schema = find_encoders(FeatureSchema.model_validate(document["schema"]), run)
        task = TaskInfo.model_validate(document["task"])
        _check_sizes(document["weights"], recipe, schema, task)
        model = build_model(recipe.model, schema, task)
        model.load_state_dict(document["weights"])
        provenance = _Provenance.model_validate(document["provenance"])
        return Checkpoint(model.eval(), recipe, schema, task, provenance.model_dump())
    except ValidationError as error:
        told = sentence(error.errors()[0])
        raise RunError(f"{path}: does not rebuild a model: {told} (made by another version? then train again)") from None
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: does not rebuild a model: {_first_line(error)}") from error
