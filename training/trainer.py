"""The one training loop: batches, optimiser, weight averaging, early stopping, resume.

Every epoch reseeds torch from (seed, epoch), so an epoch's shuffling, dropout and noise do not depend on what ran
before it: a resumed run continues bit for bit (on the CPU) from weights and optimiser state alone. Of several processes
all draw the same order of rows, then each its own noise; `training.distributed` says what else they share.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from training import distributed
from training.averaging import WeightAverage
from training.batches import Batches, MicroBatch, micro_batches
from training.checkpoint import CHECKPOINT_FORMAT, FIRST_STAGE, load_document, save_atomically, state_file
from training.data.dataset import Dataset
from training.errors import RecipeError, RunError
from training.objectives.base import ALL, NOTHING, Losses, LossModule, Model, Objective, Shares
from training.train_config import TrainConfig

_EPOCH_STRIDE, _RANK_STRIDE = 1_000_003, 15_485_863  # primes, so that no two (seed, epoch, process) meet
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch did; `interaction` and `validation` map expert and metric names to values.

    `interaction` is empty when the objective has no losses of single experts.
    """

    epoch: int
    loss: float
    task_loss: float
    interaction: dict[str, float]
    validation: dict[str, float]


@dataclass(slots=True)
class TrainingState(Generic[Model]):
    """All that changes from epoch to epoch."""

    model: Model
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of losses whose gradients float16 could not hold; does nothing for other precisions
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
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in ("next_epoch", "best_epoch", "best_value", "best_weights", "history")},
        }
        save_atomically(document, path)

    def restore(self, document: dict[str, Any], path: Path) -> None:
        """Continue from a state that was saved at `path`. Raises `RunError`."""
        try:
            self.model.load_state_dict(document["model"])
            self.average.load_state_dict(document["average"])
            self.optimizer.load_state_dict(document["optimizer"])
            self.scaler.load_state_dict(document["scaler"])
            for name in ("next_epoch", "best_epoch", "best_value", "best_weights", "history"):
                setattr(self, name, document[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(f"{path}: belongs to another recipe: {str(error).splitlines()[0]}") from error


_FREE_OF_DECAY = ("position", "token", "missing", "bias", "scale")


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    leaf = name.rpartition(".")[2].removesuffix("_SO").removesuffix("_SD")  # a stack of vectors is not a matrix
    return parameter.ndim > 1 and not leaf.endswith(_FREE_OF_DECAY)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; vectors (biases, norms) and learned positions, tokens and missing values are free.

    Frozen parameters are in no group.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
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


class Trainer(Generic[Model]):
    """Fits a model to a dataset's training rows and keeps the weights that validate best, by an objective.

    `stage` names the training among those of a run, and so its state file in the folder `run`.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective[Model],
        dataset: Dataset,
        config: TrainConfig,
        *,
        modality_dropout: float,
        run: Path,
        stage: str = FIRST_STAGE,
    ) -> None:
        self.config, self.dataset = config, dataset
        self.modality_dropout, self.dtype = modality_dropout, _PRECISIONS[config.precision]
        self.stage, self.state_path = stage, run / state_file(stage)
        self.device = distributed.choose_device(config.device)
        if config.precision == "fp16" and self.device.type == "cpu":
            raise RecipeError("train.precision: expected fp32 or bf16 on the CPU, found 'fp16'")
        model.to(self.device)
        self.objective = objective.to(self.device)
        arrays, target = dataset.part("train")
        self.batches = Batches([arrays[name] for name in dataset.schema.names], self.device, workers=config.workers)
        self.target = objective.model_target(model, torch.from_numpy(target).to(self.device))
        groups = parameter_groups(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.state = TrainingState(model, WeightAverage(model, config.ema_decay), optimizer, scaler)
        self.parameters = list(model.parameters())
        self.losses = distributed.share_gradients(LossModule(objective, model))
        self.steps_per_epoch = math.ceil(len(target) / config.batch_size)

    def resume(self) -> None:
        """Continue where an interrupted run stopped; a run that never finished an epoch starts anew."""
        document = distributed.first_says(lambda: load_document(self.state_path) if self.state_path.exists() else None)
        if document is not None:
            self.state.restore(document, self.state_path)

    def epochs(self) -> Iterator[EpochRecord]:
        """Train until the last epoch or until validation stops improving, telling each epoch once it is saved.

        Raises `RunError` when training diverges.
        """
        while self.state.next_epoch < self.config.epochs and not self._exhausted():
            record = self._run_epoch(self.state.next_epoch)
            self._remember(record)
            if distributed.is_first():
                self.state.save(self.state_path)
            yield record

    def best_model(self) -> Model:
        """The model with the weights that validated best, in evaluation mode, on the CPU."""
        model = copy.deepcopy(self.state.model).cpu()
        model.load_state_dict(self.state.best_weights)
        return model.eval()

    def _exhausted(self) -> bool:
        return self.state.best_epoch >= 0 and self.state.next_epoch - self.state.best_epoch > self.config.patience

    def take_steps(self, epoch: int) -> Tensor:
        """All optimiser steps of one epoch; this process's part of their losses: total, task, interaction (S, 2 + E)."""
        self.state.model.train()
        steps = self._draw_steps(epoch)
        inputs = self.batches([batch.rows for step in steps for batch in step])
        return torch.stack([self._step(step, inputs, epoch * self.steps_per_epoch + i) for i, step in enumerate(steps)])

    def _run_epoch(self, epoch: int) -> EpochRecord:
        told = self.take_steps(epoch)
        loss, task, *interaction = distributed.sum_over_processes(told).cpu().numpy().mean(axis=0).tolist()
        experts = self.objective.loss_names(self.state.model) if interaction else []
        validation = distributed.first_says(self._validate)
        return EpochRecord(epoch, loss, task, dict(zip(experts, interaction, strict=True)), validation)

    def _draw_steps(self, epoch: int) -> list[list[MicroBatch]]:
        """The epoch's steps, the same in all processes; from here on each draws noise of its own."""
        seed = self.config.seed * _EPOCH_STRIDE + epoch
        torch.manual_seed(seed)
        order = torch.randperm(len(self.target)).to(self.device)
        if not distributed.is_first():
            torch.manual_seed(seed + distributed.rank() * _RANK_STRIDE)
        return [micro_batches(rows, self.config.accumulate) for rows in order.split(self.config.batch_size)]

    def _step(self, step: list[MicroBatch], inputs: Iterator[list[Tensor]], number: int) -> Tensor:
        """One optimiser step, its next micro-batches' inputs from `inputs`.

        Answers this process's part of the step's losses: total, task, interaction (2 + E,).
        """
        state, last = self.state, len(step) - 1
        for group in state.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule(number)
        state.optimizer.zero_grad()
        told = torch.stack([self._backward(batch, next(inputs), shared=i == last) for i, batch in enumerate(step)]).sum(dim=0)
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update_parameters(state.model)
        return told

    def _backward(self, batch: MicroBatch, inputs: list[Tensor], *, shared: bool) -> Tensor:
        """Add a micro-batch's gradients, shared with the other processes after a step's last; its losses (2 + E,)."""
        inputs = hide_modalities(inputs, self.modality_dropout)
        with nullcontext() if shared else distributed.without_sharing(self.losses):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                losses: Losses = self.losses(inputs, self.target[batch.rows], self._shares(batch))
            # Processes take the mean of their gradients where a step needs the sum.
            self.state.scaler.scale(losses.total * distributed.num_processes()).backward()
        return torch.cat([torch.stack([losses.total.detach(), losses.task.detach()]), losses.interaction_E])

    def _shares(self, batch: MicroBatch) -> Shares:
        if not batch.counts:
            return NOTHING
        if len(batch.rows) == len(batch.step_rows):
            return ALL
        return self.objective.shares(self.target[batch.rows], self.target[batch.step_rows])

    def _schedule(self, step: int) -> float:
        """Linear warm-up, then constant or a cosine to zero at the last epoch."""
        warmup, total = self.config.warmup_epochs * self.steps_per_epoch, self.config.epochs * self.steps_per_epoch
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if self.config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))

    def _evaluated(self) -> Model:
        """The model that validates: the average's, or with ema_decay 0 the trained one itself."""
        average: Any = self.state.average.module
        return average if self.config.ema_decay > 0 else self.state.model

    def _validate(self) -> dict[str, float]:
        try:
            return self.objective.validate(self._evaluated(), self.dataset, workers=self.config.workers)
        except FloatingPointError as error:
            rate = self.config.learning_rate
            raise RunError(f"epoch {self.state.next_epoch + 1}: {error}; lower train.learning_rate ({rate:g})") from None

    def _remember(self, record: EpochRecord) -> None:
        state = self.state
        state.next_epoch = record.epoch + 1
        state.history.append({name: getattr(record, name) for name in EpochRecord.__slots__})
        value = record.validation[self.objective.selection]
        if self.objective.is_better(value, state.best_value):
            state.best_epoch, state.best_value = record.epoch, value
            weights = self._evaluated().state_dict()
            state.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
