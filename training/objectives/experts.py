"""Every expert learns its part of the evidence: unique to a modality, synergy or redundancy.

The teacher is the mixture of the first stage, frozen. Its evidence is divided by `training.decomposition`,
limited and calibrated as the modalities' own, then scaled back to its logits, which the experts' contributions (weight times
logit, centred over classes) therefore keep to: predictions stay what they were, up to the matching error.

Shape suffixes: n modalities, E = n + 2 experts, B batch, P patches, D hidden, C outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.data.dataset import Dataset
from training.decomposition import decompose
from training.inference import answers
from training.model.mixture import I2MoE
from training.objectives.base import ALL, Losses, Objective, Shares, check_finite
from training.objectives.config import DecompositionConfig
from training.objectives.evidence import EvidenceRules, freeze
from training.objectives.expectations import Expectations
from training.objectives.modalities import OwnEvidence

_TINY = 1e-6
_TINIEST = 1e-9


class Lesson(NamedTuple):
    """What the teacher says of a batch."""

    tokens_BnPD: Tensor
    logits_BC: Tensor  # the mixture's less the base rate, centred over classes
    parts_EBC: Tensor  # what every expert is to contribute; they add up to the logits


class Teacher(nn.Module):
    """The frozen mixture, its evidence divided: parts = decompose(limited(scale F), o, slope p) / scale back to F.

    F are the mixture's logits less the base rate.
    """

    slope_n11: Tensor
    base_rate_C: Tensor

    def __init__(
        self,
        mixture: I2MoE,
        own: OwnEvidence,
        expectations: Expectations,
        *,
        base_rate_C: Tensor,
        scale: float,
        slopes: Sequence[float],
    ) -> None:
        super().__init__()
        self.mixture, self.own, self.expectations = mixture, own, expectations
        self.rules, self.scale = own.rules, scale
        self.register_buffer("slope_n11", torch.tensor(slopes)[:, None, None])
        self.register_buffer("base_rate_C", base_rate_C)
        freeze(self)

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor]) -> Lesson:
        """The lesson of one batch, in full precision."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            tokens_BnPD, logits_BC = mixture_evidence(self.mixture, inputs, self.rules, self.base_rate_C)
            told = self.own(inputs)
            expected_nBC = self.slope_n11 * self.expectations(told.tokens_BnPD) * told.present_nB1
            evidence_BC = self.scale * logits_BC
            factor_BC = self.rules.limiting_factor(evidence_BC)
            parts = decompose(factor_BC * evidence_BC, told.own_nBC, expected_nBC)
            parts_EBC = torch.cat([parts.unique_nBC, parts.synergy_BC[None], parts.redundancy_BC[None]])
            return Lesson(tokens_BnPD, logits_BC, parts_EBC / (self.scale * factor_BC))


def mixture_evidence(
    mixture: I2MoE, inputs: Sequence[Tensor], rules: EvidenceRules, base_rate_C: Tensor
) -> tuple[Tensor, Tensor]:
    """A mixture's tokens (B, n, P, D) and logits (B, C) less the base rate, centred over classes, in the experts' unit."""
    tokens_BnPD = mixture.embed(inputs)
    logits_EBC = mixture.run_experts(tokens_BnPD).logits
    return tokens_BnPD, rules.centre(mixture.mix(mixture.reweighting(tokens_BnPD), logits_EBC) - base_rate_C)


class Answer(NamedTuple):
    """What the experts say of a batch, and what they should."""

    contributions_EBC: Tensor
    weights_BE: Tensor
    parts_EBC: Tensor
    logits_BC: Tensor


def matching_error(answer: Answer, config: DecompositionConfig) -> Tensor:
    """Squared errors of contributions and, times `sum_weight`, of their sum; plus `weight_share` times that of weights ()."""
    parts = (answer.contributions_EBC - answer.parts_EBC).square().sum(dim=0).mean()
    whole = (answer.contributions_EBC.sum(dim=0) - answer.logits_BC).square().mean()
    return parts + config.sum_weight * whole + config.weight_share * share_divergence(answer)


def share_divergence(answer: Answer) -> Tensor:
    """KL(shares of the parts || weights), mean over rows (): so a weight may be read as an importance.

    Rows count by t / (t + 1) of their total t of absolute parts: those that say nothing have no shares.
    """
    sizes_EB = answer.parts_EBC.abs().sum(dim=-1)
    total_B = sizes_EB.sum(dim=0)
    shares_EB = sizes_EB / (total_B + _TINY)
    divergence_B = (shares_EB * ((shares_EB + _TINY).log() - (answer.weights_BE.T + _TINIEST).log())).sum(dim=0)
    return (divergence_B * total_B / (total_B + 1)).mean()


def explained(found: Tensor, wanted: Tensor) -> float:
    """R2 of values (..., N, C) about their mean over rows N, all of them together."""
    total = (wanted - wanted.mean(dim=-2, keepdim=True)).square().sum()
    return float(1 - (found - wanted).square().sum() / total.clamp(min=_TINIEST))


class ExpertsObjective(Objective[I2MoE]):
    """The matching error of experts and reweighting network on the teacher's tokens, plus gate_weight * L_gate.

    Every batch is seen twice, the second time with modalities whose rows traded places (each with probability
    `shuffle_rate`): combinations that data hardly hold, for which the teacher has an answer and no label is needed.
    """

    selection = "matching_error"

    def __init__(self, teacher: Teacher, config: DecompositionConfig, *, gate_weight: float) -> None:
        super().__init__()
        self.teacher, self.config, self.gate_weight = teacher, config, gate_weight

    def forward(self, model: I2MoE, inputs: list[Tensor], target_B: Tensor, shares: Shares = ALL) -> Losses:
        """The losses of one batch; the targets are not looked at."""
        del target_B
        both = [torch.cat(pair) for pair in zip(inputs, shuffled(inputs, self.config.shuffle_rate), strict=True)]
        answer, gate_loss = self._answer(model, both)
        error = shares.rows * matching_error(answer, self.config)
        return Losses(error + shares.rows * self.gate_weight * gate_loss, error, error.new_zeros(0))

    def _answer(self, model: I2MoE, inputs: list[Tensor]) -> tuple[Answer, Tensor]:
        lesson: Lesson = self.teacher(inputs)
        weights_BE = model.reweighting(lesson.tokens_BnPD).float()
        experts = model.run_experts(lesson.tokens_BnPD)
        contributions_EBC = self.teacher.rules.centre(weights_BE.T[:, :, None] * experts.logits.float())
        return Answer(contributions_EBC, weights_BE, lesson.parts_EBC, lesson.logits_BC), experts.gate_loss

    def validate(self, model: I2MoE, dataset: Dataset, *, workers: int) -> dict[str, float]:
        """The matching error, and how much of the parts and of the teacher's logits the contributions explain."""
        arrays, _ = dataset.part("validation")
        answer = Answer(*answers(model, lambda x: self._answer(model, x)[0], dataset.schema, arrays, workers=workers))
        error = float(matching_error(answer, self.config))
        check_finite(error)
        return {
            self.selection: error,
            "r2_contributions": explained(answer.contributions_EBC, answer.parts_EBC),
            "r2_sum": explained(answer.contributions_EBC.sum(dim=0), answer.logits_BC),
        }


def shuffled(inputs: Sequence[Tensor], rate: float) -> list[Tensor]:
    """Inputs (B, columns) whose rows trade places, each modality with probability `rate` and on its own."""
    return [x[torch.randperm(len(x)).to(x.device)] if torch.rand(()) < rate else x for x in inputs]


def limit_dropout(model: nn.Module, largest: float) -> None:
    """Dropout of at most `largest`: a target that is known exactly needs little."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = min(module.p, largest)
