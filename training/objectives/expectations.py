"""What the other modalities let expect of a modality's evidence: E[o_i | the others] - E[o_i].

Shape suffixes: n modalities, B batch, P patches, D hidden, C outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.data.dataset import Dataset
from training.inference import answers
from training.objectives.base import ALL, Losses, Objective, Shares, check_finite
from training.objectives.config import DecompositionConfig
from training.objectives.evidence import EvidenceRules, fit_slopes, small_mlp
from training.objectives.modalities import OwnEvidence


class Expectations(nn.Module):
    """For every modality a small network on the tokens of all others."""

    def __init__(
        self, num_modalities: int, *, token_size: int, num_outputs: int, config: DecompositionConfig, rules: EvidenceRules
    ) -> None:
        super().__init__()
        self.rules = rules
        size = (num_modalities - 1) * token_size
        self.heads = nn.ModuleList(
            small_mlp(size, num_outputs, hidden=config.head_hidden, dropout=config.head_dropout) for _ in range(num_modalities)
        )

    def forward(self, tokens_BnPD: Tensor) -> Tensor:
        """Tokens to the expected evidence (n, B, C), centred over classes."""
        tokens_BnK = tokens_BnPD.flatten(2)
        others = [torch.cat([tokens_BnK[:, :i], tokens_BnK[:, i + 1 :]], dim=1).flatten(1) for i in range(len(self.heads))]
        return self.rules.centre(torch.stack([head(x) for head, x in zip(self.heads, others, strict=True)]))


class ExpectationsObjective(Objective[Expectations]):
    """L = mean (p_i - (o_i - mean o_i))^2 over modalities, rows and outputs; a modality that is missing counts 0.

    `own` are the frozen predictors: their tokens are what is read, their evidence is what is expected.
    """

    selection = "squared_error"

    def __init__(self, own: OwnEvidence, modalities: Sequence[str]) -> None:
        super().__init__()
        self.own, self.modalities = own, tuple(modalities)

    def forward(self, model: Expectations, inputs: list[Tensor], target_B: Tensor, shares: Shares = ALL) -> Losses:
        """The losses of one batch; the targets are not looked at."""
        del target_B
        errors_n = shares.rows * _squared_errors(*self._expected_and_found(model, inputs))
        return Losses(errors_n.mean(), errors_n.mean(), errors_n.detach())

    def _expected_and_found(self, model: Expectations, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Expected and found evidence (n, B, C), without its mean; 0 where the modality is missing."""
        told = self.own(inputs)
        expected_nBC = model(told.tokens_BnPD).float()
        return expected_nBC * told.present_nB1, (told.own_nBC - self.own.mean_n1C) * told.present_nB1

    def loss_names(self, model: Expectations) -> Sequence[str]:
        """The modalities."""
        del model
        return self.modalities

    def validation_answers(self, model: Expectations, dataset: Dataset, *, workers: int) -> list[Tensor]:
        """Expected and found evidence (n, N, C) of validation rows."""
        arrays, _ = dataset.part("validation")
        return answers(model, lambda x: self._expected_and_found(model, x), dataset.schema, arrays, workers=workers)

    def validate(self, model: Expectations, dataset: Dataset, *, workers: int) -> dict[str, float]:
        """The mean squared error, and every modality's own."""
        errors = _squared_errors(*self.validation_answers(model, dataset, workers=workers)).tolist()
        check_finite(errors)
        return {self.selection: sum(errors) / len(errors)} | dict(zip(self.modalities, errors, strict=True))

    def fit_slopes(self, model: Expectations, dataset: Dataset, *, workers: int) -> list[float]:
        """How far expectations hold on validation rows, for every modality between 0 and 1."""
        return fit_slopes(*self.validation_answers(model, dataset, workers=workers))


def _squared_errors(expected_nBC: Tensor, found_nBC: Tensor) -> Tensor:
    return (expected_nBC - found_nBC).square().mean(dim=(1, 2))
