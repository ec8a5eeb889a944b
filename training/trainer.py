"""The one training loop: batches, optimiser, weight averaging, early stopping, resume.

Every epoch reseeds torch from (seed, epoch), so an epoch's shuffling, dropout and noise do not depend on what ran
before it: a resumed run continues bit for bit (on the CPU) from weights and optimiser state alone.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training.checkpoint import CHECKPOINT_FORMAT, STATE_FILE, load_document, save_atomically
from training.data.dataset import Dataset
from training.errors import RecipeError, RunError
from training.inference import predict
from training.model.mixture import I2MoE
from training.objectives import Losses, PaperObjective
from training.tasks import is_better
from training.train_config import TrainConfig

_EPOCH_STRIDE = 1_000_003  # a prime, so that (seed, epoch) pairs do not meet


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch did; `interaction` and `validation` map expert and metric names to values.

    `interaction` is empty when the objective has no interaction losses.
    """

    epoch: int
    loss: float
    task_loss: float
    interaction: dict[str, float]
    validation: dict[str, float]


@dataclass(slots=True)
class TrainingState:
    """All that changes from epoch to epoch."""

    model: I2MoE
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    next_epoch: int = 0
    best_epoch: int = -1
    best_value: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write everything `restore` needs."""
        document = {
            "format": CHECKPOINT_FORMAT,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in ("next_epoch", "best_epoch", "best_value", "best_weights", "history")},
        }
        save_atomically(document, path)

    def restore(self, path: Path) -> None:
        """Continue from a saved state. Raises `RunError`."""
        document = load_document(path)
        try:
            self.model.load_state_dict(document["model"])
            self.average.load_state_dict(document["average"])
            self.optimizer.load_state_dict(document["optimizer"])
            for name in ("next_epoch", "best_epoch", "best_value", "best_weights", "history"):
                setattr(self, name, document[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(f"{path}: belongs to another recipe: {str(error).splitlines()[0]}") from error


def choose_device(wanted: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. Raises `RecipeError`."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts
        raise RecipeError(f"train.device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


_FREE_OF_DECAY = ("position", "token", "missing", "bias", "scale")


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    leaf = name.rpartition(".")[2].removesuffix("_SO").removesuffix("_SD")  # a stack of vectors is not a matrix
    return parameter.ndim > 1 and not leaf.endswith(_FREE_OF_DECAY)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; vectors (biases, norms) and learned positions, tokens and missing values are free."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if _is_decayed(name, p)]
    free = [p for name, p in named if not _is_decayed(name, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def hide_modalities(inputs: list[Tensor], rate: float) -> list[Tensor]:
    """Modality dropout: whole modalities of random samples become NaN, but never a sample's last one."""
    if rate == 0:
        return inputs
    present_nB = torch.stack([~torch.isnan(x).all(dim=1) for x in inputs])
    hidden_nB = torch.rand(present_nB.shape, device=present_nB.device) < rate
    hidden_nB &= (present_nB & ~hidden_nB).any(dim=0)
    return [torch.where(hidden[:, None], torch.nan, x) for hidden, x in zip(hidden_nB, inputs, strict=True)]


class Trainer:
    """Fits a model to a dataset's training rows and keeps the weights that validate best."""

    def __init__(
        self,
        model: I2MoE,
        objective: PaperObjective,
        dataset: Dataset,
        config: TrainConfig,
        *,
        modality_dropout: float,
        run: Path,
    ) -> None:
        self.config, self.dataset, self.objective = config, dataset, objective
        self.modality_dropout = modality_dropout
        self.state_path = run / STATE_FILE
        self.device = choose_device(config.device)
        model.to(self.device)
        arrays, target = dataset.part("train")
        self.inputs = [torch.from_numpy(arrays[name]).to(self.device) for name in dataset.schema.names]
        self.target = model.standardise(torch.from_numpy(target).to(self.device))
        self.selection = objective.task.selection(config.selection)
        groups = parameter_groups(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.state = TrainingState(model, AveragedModel(model, multi_avg_fn=self._average), optimizer)
        self.steps_per_epoch = math.ceil(len(target) / config.batch_size)

    def resume(self) -> None:
        """Continue where an interrupted run stopped; a run that never finished an epoch starts anew."""
        if self.state_path.exists():
            self.state.restore(self.state_path)

    def epochs(self) -> Iterator[EpochRecord]:
        """Train until the last epoch or until validation stops improving, telling each epoch once it is saved.

        Raises `RunError` when training diverges.
        """
        while self.state.next_epoch < self.config.epochs and not self._exhausted():
            record = self._run_epoch(self.state.next_epoch)
            self._remember(record)
            self.state.save(self.state_path)
            yield record

    def best_model(self) -> I2MoE:
        """The model with the weights that validated best, in evaluation mode, on the CPU."""
        model = copy.deepcopy(self.state.model).cpu()
        model.load_state_dict(self.state.best_weights)
        return model.eval()

    def _exhausted(self) -> bool:
        return self.state.best_epoch >= 0 and self.state.next_epoch - self.state.best_epoch > self.config.patience

    def _run_epoch(self, epoch: int) -> EpochRecord:
        torch.manual_seed(self.config.seed * _EPOCH_STRIDE + epoch)
        self.state.model.train()
        order = torch.randperm(len(self.target)).to(self.device)
        batches = order.split(self.config.batch_size)
        totals = [self._step(rows, epoch * self.steps_per_epoch + step) for step, rows in enumerate(batches)]
        loss, task, *interaction = np.mean(totals, axis=0).tolist()
        experts = [expert.name for expert in self.state.model.roles] if interaction else []
        return EpochRecord(epoch, loss, task, dict(zip(experts, interaction, strict=True)), self._validate())

    def _step(self, rows: Tensor, step: int) -> NDArray[np.float32]:
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule(step)
        inputs = hide_modalities([x[rows] for x in self.inputs], self.modality_dropout)
        losses: Losses = self.objective(self.state.model, inputs, self.target[rows])
        self.state.optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(self.state.model.parameters(), self.config.max_grad_norm)
        self.state.optimizer.step()
        self.state.average.update_parameters(self.state.model)
        told = torch.cat([torch.stack([losses.total.detach(), losses.task.detach()]), losses.interaction_E])
        return told.cpu().numpy()

    def _schedule(self, step: int) -> float:
        """Linear warm-up, then constant or a cosine to zero at the last epoch."""
        warmup, total = self.config.warmup_epochs * self.steps_per_epoch, self.config.epochs * self.steps_per_epoch
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if self.config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))

    def _average(self, averages: Any, currents: Any, num_averaged: Any) -> None:
        """Exponential moving average whose memory grows to `ema_decay`, so that early averages forget the start."""
        steps = float(num_averaged)
        decay = min(self.config.ema_decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(averages, currents, 1 - decay)

    def _validate(self) -> dict[str, float]:
        arrays, target = self.dataset.part("validation")
        evaluated = self.state.average.module if self.config.ema_decay > 0 else self.state.model
        prediction = predict(evaluated, self.dataset.schema, arrays).prediction
        if not np.isfinite(prediction).all():
            rate = self.config.learning_rate
            raise RunError(f"epoch {self.state.next_epoch + 1}: the model answers NaN; lower train.learning_rate ({rate:g})")
        return self.objective.task.measure(prediction, target)

    def _remember(self, record: EpochRecord) -> None:
        state = self.state
        state.next_epoch = record.epoch + 1
        state.history.append({name: getattr(record, name) for name in EpochRecord.__slots__})
        value = record.validation[self.selection]
        if is_better(self.selection, value, state.best_value):
            evaluated: Any = state.average.module if self.config.ema_decay > 0 else state.model
            state.best_epoch, state.best_value = record.epoch, value
            state.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in evaluated.state_dict().items()}
