"""The published objective: the task loss of the mixture plus the interaction losses of the experts.

Shape suffixes: E experts (uniqueness 1..n, synergy, redundancy), V variants (clean, then modality 1..n replaced), B batch,
C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.dataset import Dataset
from training.errors import RecipeError
from training.inference import predict
from training.model.masking import MASKINGS
from training.model.mixture import I2MoE
from training.objectives.base import ALL, Losses, Objective, Shares, TaskLoss, check_finite
from training.objectives.config import ObjectiveConfig
from training.objectives.interaction_losses import (
    BOUNDED_REGRESSION,
    CLASSIFICATION,
    RELEASED_REGRESSION,
    LossRules,
    interaction_losses,
)
from training.tasks import Regression, Task, is_better


class PaperObjective(Objective[I2MoE]):
    """L = L_task(sum_e w_e y_e, target) + interaction_weight / E * sum_e L_e + gate_weight * L_gate (I2MoE, Algorithm 1).

    The task loss is on the mixture alone: no expert is asked to predict by itself. Nothing is detached. `selection` is
    a metric of the task, its own choice if not given.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        task: Task,
        modalities: Sequence[str],
        class_weights_C: Tensor | None = None,
        *,
        selection: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.task, self.modalities = config, task, tuple(modalities)
        if config.num_perturbed is not None and config.num_perturbed > len(self.modalities):
            raise RecipeError(f"objective.num_perturbed: expected at most {len(self.modalities)}, found {config.num_perturbed}")
        self.selection = task.selection(selection)
        self._replacement = MASKINGS[config.masking]
        self._rules = self._choose_rules()
        self.task_loss = TaskLoss(task, class_weights_C=class_weights_C, label_smoothing=config.label_smoothing)

    def _choose_rules(self) -> LossRules:
        if not isinstance(self.task, Regression) or self.config.on == "latents":
            return CLASSIFICATION
        return BOUNDED_REGRESSION if self.config.regression_losses == "bounded" else RELEASED_REGRESSION

    def forward(self, model: I2MoE, inputs: list[Tensor], target_B: Tensor, shares: Shares = ALL) -> Losses:
        """The losses of one batch. `inputs` holds one (B, columns) tensor per modality, `target_B` the targets.

        Targets of regression tasks are in the model's own units (standard deviations from the training mean). Under
        autocast the model's answers are compared in float32.
        """
        tokens_BnPD = model.embed(inputs)
        weights_BE = model.reweighting(tokens_BnPD)
        logits_EBC, interaction_E, gate_loss = self._experts(model, tokens_BnPD)
        with torch.autocast(logits_EBC.device.type, enabled=False):  # a mixture of few terms needs all their digits
            mixed_BC = model.mix(weights_BE.float(), logits_EBC)
        task = shares.task * self.task_loss(mixed_BC, target_B)
        total = task + shares.rows * (self.config.gate_weight * gate_loss)
        interaction_E = shares.rows * interaction_E
        if len(interaction_E):
            total = total + self.config.interaction_weight * interaction_E.mean()
        return Losses(total, task, interaction_E.detach())

    def shares(self, target_B: Tensor, whole_N: Tensor) -> Shares:
        """By rows, or by what their classes weigh."""
        return self.task_loss.shares(target_B, whole_N)

    def model_target(self, model: I2MoE, target_N: Tensor) -> Tensor:
        """Regression: in standard deviations from the training mean."""
        return model.standardise(target_N)

    def loss_names(self, model: I2MoE) -> list[str]:
        """The experts."""
        return [expert.name for expert in model.roles]

    def is_better(self, value: float, best: float | None) -> bool:
        """As the task's metric has it."""
        return is_better(self.selection, value, best)

    def validate(self, model: I2MoE, dataset: Dataset, *, workers: int) -> dict[str, float]:
        """Every metric of the task."""
        arrays, target = dataset.part("validation")
        prediction = predict(model, dataset.schema, arrays, workers=workers).prediction
        check_finite(prediction)
        return self.task.measure(prediction, target)

    def _experts(self, model: I2MoE, tokens_BnPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean logits (E, B, C), interaction losses (E,) or (0,), gate loss ()."""
        if self.config.interaction_weight == 0:
            clean = model.run_experts(tokens_BnPD)
            return clean.logits.float(), clean.logits.new_zeros(0, dtype=torch.float32), clean.gate_loss
        replaced = self._replaced_modalities()
        output = model.run_perturbed(tokens_BnPD, self._replacement, replaced)
        compared = output.latents if self.config.on == "latents" else output.logits
        names = [self.modalities[position] for position in replaced]
        interaction_E = interaction_losses(compared.float(), model.roles, names, self._rules)
        return output.logits[:, 0].float(), interaction_E, output.gate_loss

    def _replaced_modalities(self) -> list[int]:
        """All of them, or as many as wanted, drawn anew in every step."""
        if self.config.num_perturbed is None:
            return list(range(len(self.modalities)))
        drawn: list[int] = torch.randperm(len(self.modalities))[: self.config.num_perturbed].sort().values.tolist()
        return drawn
