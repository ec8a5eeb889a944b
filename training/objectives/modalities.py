"""What each modality says alone: a predictor that sees nothing else, and its evidence.

Shape suffixes: n modalities, B batch, N rows, P patches, D hidden, C outputs.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.data.dataset import Dataset
from training.inference import answers
from training.model.units import TargetUnits
from training.objectives.base import ALL, Losses, Objective, Shares, TaskLoss, check_finite
from training.objectives.config import DecompositionConfig
from training.objectives.evidence import EvidenceRules, fit_scale, freeze, small_mlp


class ModalityPredictors(nn.Module):
    """One predictor per modality: a copy of its encoder and a small head on the encoder's tokens."""

    def __init__(self, encoders: Sequence[nn.Module], *, token_size: int, num_outputs: int, config: DecompositionConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(copy.deepcopy(encoder) for encoder in encoders)
        self.heads = nn.ModuleList(
            small_mlp(token_size, num_outputs, hidden=config.head_hidden, dropout=config.head_dropout) for _ in encoders
        )

    def embed(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs (B, columns), one per modality, to tokens (B, n, P, D)."""
        return torch.stack([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)], dim=1)

    def predict(self, tokens_BnPD: Tensor) -> Tensor:
        """Tokens to every modality's own logits (n, B, C)."""
        return torch.stack([head(tokens_BnPD[:, i].flatten(1)) for i, head in enumerate(self.heads)])

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs to every modality's own logits (n, B, C)."""
        return self.predict(self.embed(inputs))


class ModalitiesObjective(Objective[ModalityPredictors]):
    """L = 1/n sum_i L_task(y_i, target): no modality knows of the others."""

    selection = "task_loss"

    def __init__(self, task_loss: TaskLoss, modalities: Sequence[str], units: TargetUnits | None) -> None:
        super().__init__()
        self.task_loss, self.modalities, self.units = task_loss, tuple(modalities), units

    def forward(self, model: ModalityPredictors, inputs: list[Tensor], target_B: Tensor, shares: Shares = ALL) -> Losses:
        """The losses of one batch."""
        losses_n = shares.task * self._losses(model(inputs).float(), target_B)
        return Losses(losses_n.mean(), losses_n.mean(), losses_n.detach())

    def _losses(self, logits_nBC: Tensor, target_B: Tensor) -> Tensor:
        with torch.autocast(logits_nBC.device.type, enabled=False):
            return torch.stack([self.task_loss(logits_BC, target_B) for logits_BC in logits_nBC])

    def shares(self, target_B: Tensor, whole_N: Tensor) -> Shares:
        """By rows, or by what their classes weigh."""
        return self.task_loss.shares(target_B, whole_N)

    def model_target(self, model: ModalityPredictors, target_N: Tensor) -> Tensor:
        """Regression: in standard deviations from the training mean."""
        del model
        return target_N if self.units is None else self.units.standardise(target_N)

    def loss_names(self, model: ModalityPredictors) -> Sequence[str]:
        """The modalities."""
        del model
        return self.modalities

    def validate(self, model: ModalityPredictors, dataset: Dataset, *, workers: int) -> dict[str, float]:
        """The mean task loss, and every modality's own."""
        logits_nNC, target_N = self.validation_answers(model, dataset, workers=workers)
        losses = self._losses(logits_nNC, target_N).tolist()
        check_finite(losses)
        return {self.selection: sum(losses) / len(losses)} | dict(zip(self.modalities, losses, strict=True))

    def validation_answers(self, model: ModalityPredictors, dataset: Dataset, *, workers: int) -> tuple[Tensor, Tensor]:
        """Every modality's own logits (n, N, C) and the target (N,) of validation rows."""
        arrays, target = dataset.part("validation")
        (logits_nNC,) = answers(model, lambda inputs: (model(inputs),), dataset.schema, arrays, workers=workers)
        return logits_nNC, self.model_target(model, torch.from_numpy(target).to(logits_nNC.device))


class Told(NamedTuple):
    """What frozen predictors say of a batch."""

    tokens_BnPD: Tensor
    own_nBC: Tensor  # each modality's evidence alone: scaled, limited, centred over classes
    present_nB1: Tensor  # false where a row lacks the modality


class OwnEvidence(nn.Module):
    """Frozen predictors as evidence: o_i = limited(scale_i y_i), with its mean over training rows."""

    scale_n11: Tensor
    mean_n1C: Tensor

    def __init__(self, predictors: ModalityPredictors, rules: EvidenceRules, scale_n: Sequence[float]) -> None:
        super().__init__()
        self.predictors, self.rules = predictors, rules
        self.register_buffer("scale_n11", torch.tensor(scale_n)[:, None, None])
        self.register_buffer("mean_n1C", torch.zeros(len(scale_n), 1, 1))
        freeze(self)

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor]) -> Told:
        """Tokens and evidence, in full precision."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            tokens_BnPD = self.predictors.embed(inputs)
            logits_nBC = self.rules.centre(self.predictors.predict(tokens_BnPD))
            present_nB1 = torch.stack([~torch.isnan(x).all(dim=1, keepdim=True) for x in inputs])
            return Told(tokens_BnPD, self.rules.limited(self.scale_n11 * logits_nBC), present_nB1)

    def training_mean(self, dataset: Dataset, *, workers: int) -> Tensor:
        """The mean evidence of the training rows (n, 1, C)."""
        arrays, _ = dataset.part("train")
        (own_nNC,) = answers(self, lambda inputs: (self(inputs).own_nBC,), dataset.schema, arrays, workers=workers)
        return own_nNC.mean(dim=1, keepdim=True)


def fit_own_scales(
    predictors: ModalityPredictors, objective: ModalitiesObjective, rules: EvidenceRules, dataset: Dataset, *, workers: int
) -> list[float]:
    """What every modality's logits are worth on validation rows (n,)."""
    logits_nNC, target_N = objective.validation_answers(predictors, dataset, workers=workers)
    loss = objective.task_loss.unsmoothed()
    return [fit_scale(logits_NC, target_N, loss, rules.kind) for logits_NC in rules.centre(logits_nNC)]
