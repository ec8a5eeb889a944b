"""The stages of a training, each a run of the one trainer; the paper's objective has one, the decomposition four.

    task          the mixture, by the published objective: what is told is its evidence, so nothing is lost in accuracy
    modalities    a predictor for each modality that sees it alone, and what its evidence is worth on validation rows
    expectations  what the other modalities let expect of each one's evidence
    experts       the mixture again: every expert learns its part of the first stage's evidence

A stage begins with the best weights of those before it, which their state files keep until the run is complete. So a run
that was interrupted goes through its finished stages without an epoch and continues the one in which it stopped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import distributed
from training.checkpoint import FIRST_STAGE, state_file
from training.data.dataset import Dataset
from training.inference import answers
from training.model.mixture import I2MoE
from training.objectives.base import Model, Objective
from training.objectives.evidence import EvidenceRules, fit_scale, freeze
from training.objectives.expectations import Expectations, ExpectationsObjective
from training.objectives.experts import ExpertsObjective, Teacher, limit_dropout, mixture_evidence
from training.objectives.modalities import ModalitiesObjective, ModalityPredictors, OwnEvidence, fit_own_scales
from training.objectives.paper import PaperObjective
from training.recipe import Recipe
from training.train_config import TrainConfig
from training.trainer import Trainer

STAGES = (FIRST_STAGE, "modalities", "expectations", "experts")
_SMALLEST_SCALE = 0.03  # of the mixture's evidence, by which its parts are divided
_SEED_STRIDE = 32_452_843  # a prime, so that no stage starts with another's random weights

Tell = Callable[[Trainer[Any]], object]  # runs all epochs of a trainer, telling each


@dataclass(slots=True)
class Trained:
    """What the stages made: the model, each stage's epochs, and of a decomposition the figures that it rests on."""

    model: I2MoE  # with the weights that validated best, in evaluation mode, on the CPU
    histories: dict[str, list[dict[str, Any]]]
    decomposition: dict[str, Any] = field(default_factory=dict)


def train_stages(first: Trainer[I2MoE], recipe: Recipe, dataset: Dataset, run: Path, tell: Tell) -> Trained:
    """Run the first stage's trainer and whatever the objective has after it. Raises `RunError` when training diverges."""
    tell(first)
    model, histories = first.best_model(), {FIRST_STAGE: first.state.history}
    if recipe.objective.kind == "paper":
        return Trained(model, histories)
    return _Decomposition(first, recipe, dataset, run, tell).train(model)


def remove_states(run: Path) -> None:
    """Remove what `--resume` would need."""
    for stage in STAGES:
        (run / state_file(stage)).unlink(missing_ok=True)


class _Decomposition:
    """The stages after the first, whose task loss they share."""

    def __init__(self, first: Trainer[I2MoE], recipe: Recipe, dataset: Dataset, run: Path, tell: Tell) -> None:
        assert isinstance(first.objective, PaperObjective)
        self.first, self.recipe, self.dataset, self.run, self.tell = first, recipe, dataset, run, tell
        _, target = dataset.part("train")
        self.task_loss, self.device = first.objective.task_loss.of_evidence(target).to(first.device), first.device
        self.config, self.workers = recipe.objective.decomposition, recipe.train.workers
        self.rules = EvidenceRules(dataset.task.kind, self.config.evidence_limit)
        self.names = dataset.schema.names
        self.sizes = {
            "token_size": recipe.model.num_patches * recipe.model.hidden_dim,
            "num_outputs": len(dataset.task.labels),
        }
        self.histories: dict[str, list[dict[str, Any]]] = {FIRST_STAGE: first.state.history}

    def train(self, mixture: I2MoE) -> Trained:
        """All stages, from the best mixture of the first."""
        own = self._own_evidence(mixture)
        expectations, slopes = self._expectations(own)
        scale = self._mixture_scale(mixture)
        teacher = Teacher(mixture, own, expectations, base_rate_C=self._base_rate(), scale=scale, slopes=slopes)
        model, figures = self._experts(teacher)
        told = {
            "own_scale": self._by_name(own.scale_n11.flatten().tolist()),
            "expected_slope": self._by_name(slopes),
            "mixture_scale": round(scale, 4),
            **figures,
        }
        return Trained(model, self.histories, told)

    def _base_rate(self) -> Tensor:
        assert self.task_loss.base_rate_C is not None
        return self.task_loss.base_rate_C

    def _by_name(self, values: list[float]) -> dict[str, float]:
        return {name: round(value, 4) for name, value in zip(self.names, values, strict=True)}

    def _run(self, stage: str, model: Model, objective: Objective[Model], config: TrainConfig | None = None) -> Trainer[Model]:
        """A finished run of one stage, continued where it stopped; trained as the recipe says, if not as `config` does."""
        config, rate = config or self.recipe.train, self.first.modality_dropout
        trainer = Trainer(model, objective, self.dataset, config, modality_dropout=rate, run=self.run, stage=stage)
        trainer.resume()
        self.tell(trainer)
        self.histories[stage] = trainer.state.history
        return trainer

    def _experts_training(self) -> TrainConfig:
        """Steps enough, at a higher rate, without decay: targets are known exactly."""
        train = self.recipe.train
        epochs = max(train.epochs, math.ceil(self.config.min_steps / self.first.steps_per_epoch))
        return train.model_copy(
            update={"epochs": epochs, "learning_rate": train.learning_rate * self.config.rate, "weight_decay": 0.0}
        )

    def _seed(self, stage: str) -> None:
        torch.manual_seed(self.recipe.train.seed + STAGES.index(stage) * _SEED_STRIDE)

    def _own_evidence(self, mixture: I2MoE) -> OwnEvidence:
        """Stage "modalities": what each says alone, as much as it is worth on validation rows."""
        self._seed("modalities")
        predictors = ModalityPredictors(list(mixture.encoders), config=self.config, **self.sizes)
        objective = ModalitiesObjective(self.task_loss, self.names, mixture.units)
        best = self._run("modalities", predictors, objective).best_model().to(self.device)
        scales = distributed.first_says(lambda: fit_own_scales(best, objective, self.rules, self.dataset, workers=self.workers))
        own = OwnEvidence(best, self.rules, scales).to(self.device)
        mean_n1C = distributed.first_says(lambda: own.training_mean(self.dataset, workers=self.workers).cpu())
        own.mean_n1C = mean_n1C.to(self.device)
        return own

    def _expectations(self, own: OwnEvidence) -> tuple[Expectations, list[float]]:
        """Stage "expectations", and how far they hold on validation rows."""
        self._seed("expectations")
        expectations = Expectations(len(self.names), config=self.config, rules=self.rules, **self.sizes)
        objective = ExpectationsObjective(own, self.names)
        best = self._run("expectations", expectations, objective).best_model().to(self.device)
        return best, distributed.first_says(lambda: objective.fit_slopes(best, self.dataset, workers=self.workers))

    def _mixture_scale(self, mixture: I2MoE) -> float:
        """What the mixture's logits are worth on validation rows, never nothing."""
        mixture.to(self.device)
        freeze(mixture)
        return distributed.first_says(lambda: max(_SMALLEST_SCALE, self._fit_mixture_scale(mixture)))

    def _fit_mixture_scale(self, mixture: I2MoE) -> float:
        arrays, target = self.dataset.part("validation")
        (logits_NC,) = answers(
            mixture,
            lambda x: mixture_evidence(mixture, x, self.rules, self._base_rate())[1:],
            self.dataset.schema,
            arrays,
            workers=self.workers,
        )
        target_N = mixture.standardise(torch.from_numpy(target).to(self.device))
        return fit_scale(logits_NC, target_N, self.task_loss.unsmoothed(), self.rules.kind)

    def _experts(self, teacher: Teacher) -> tuple[I2MoE, dict[str, float]]:
        """Stage "experts": from a copy of the mixture, encoders frozen. The model, and how well it matches."""
        model = self.first.best_model()
        limit_dropout(model, self.config.max_dropout)
        model.encoders.requires_grad_(requires_grad=False)
        objective = ExpertsObjective(teacher, self.config, gate_weight=self.recipe.objective.gate_weight)
        trainer = self._run("experts", model, objective, self._experts_training())
        best = trainer.state.history[trainer.state.best_epoch]["validation"]
        return trainer.best_model(), {name: round(best[name], 4) for name in ("r2_contributions", "r2_sum")}
