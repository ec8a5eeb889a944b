"""I2MoE: encoders, n + 2 fusion experts that start equal, and a reweighting network.

`forward` is the served single pass: no masking, no randomness in evaluation mode. The perturbed passes of training are
`perturbed_logits`; the losses over them live in `training.objectives.interaction_losses`.

Shape suffixes: B batch, n modalities, P patches, D hidden, E = n + 2 experts, V = n + 1 variants, C outputs.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from service.bundle.manifest import ExpertInfo
from training.model.calibration import Calibration
from training.model.fusion.base import Fusion, FusionOutput
from training.model.masking import perturb
from training.model.modality import ModalityEncoder
from training.model.units import TargetUnits


class MixtureOutput(NamedTuple):
    """One clean pass. sum over E of expert_weights x expert_logits = logits; prediction is calibrated."""

    prediction_BC: Tensor
    logits_BC: Tensor
    expert_weights_BE: Tensor
    expert_logits_BEC: Tensor


class ExpertsOutput(NamedTuple):
    """All experts on some tokens. With perturbed variants there is an axis V after E."""

    logits: Tensor  # (E, B, C) or (E, V, B, C)
    latents: Tensor  # (E, B, K) or (E, V, B, K), what each expert's last linear map reads
    gate_loss: Tensor  # (), mean over experts of their load-balancing losses; 0 for backbones without gates


def _gather(outputs: Sequence[FusionOutput]) -> ExpertsOutput:
    return ExpertsOutput(
        torch.stack([output.logits_BC for output in outputs]),
        torch.stack([output.latent_BK for output in outputs]),
        torch.stack([output.gate_loss for output in outputs]).mean(),
    )


class I2MoE(nn.Module):
    """Interpretable multimodal interaction-aware mixture of experts (Xin et al., ICML 2025, section 3).

    `encoders` turn each modality's (B, columns) input, NaN where missing, into (B, P, D) tokens, in modality order.
    `expert` is one freshly initialised fusion module; every expert starts as a copy of it, as in the paper. `roles` says
    which experts there are and in what order; all of the paper's, or fewer for an ablation.
    """

    def __init__(
        self,
        *,
        encoders: Sequence[nn.Module],
        expert: nn.Module,
        roles: Sequence[ExpertInfo],
        reweighting: nn.Module,
        calibration: Calibration,
        units: TargetUnits | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.roles = tuple(roles)
        self.experts = nn.ModuleList(copy.deepcopy(expert) for _ in self.roles)
        self.reweighting = reweighting
        self.calibration = calibration
        self.units = units  # regression: from the experts' unit to the target's

    def embed(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs (B, columns), one per modality, to tokens (B, n, P, D)."""
        return torch.stack([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)], dim=1)

    def embed_partly(self, inputs: Sequence[Tensor], known: Sequence[Tensor]) -> Tensor:
        """Tokens (B, n, P, D) of rows of which each column is known to a share, see `Encoder.encode_partly`."""
        tokens = []
        for encoder, x_BF, known_BF in zip(self.encoders, inputs, known, strict=True):
            assert isinstance(encoder, ModalityEncoder)
            tokens.append(encoder.encode_partly(x_BF, known_BF))
        return torch.stack(tokens, dim=1)

    def run_experts(self, tokens_BnPD: Tensor) -> ExpertsOutput:
        """Every expert on the same tokens: logits (E, B, C)."""
        return _gather([expert(tokens_BnPD) for expert in self.experts])

    def run_perturbed(
        self, tokens_BnPD: Tensor, replacement: Callable[[Tensor], Tensor], modalities: Sequence[int]
    ) -> ExpertsOutput:
        """Every expert on the clean tokens and on its own perturbed ones, one for each of `modalities` replaced.

        Logits (E, V, B, C) with V = 1 + len(modalities), one call per expert.
        """
        outputs = []
        for expert in self.experts:
            assert isinstance(expert, Fusion)
            outputs.append(expert.perturbed(perturb(tokens_BnPD, replacement, modalities)))
        output = _gather(outputs)
        shape = (1 + len(modalities), -1)
        return output._replace(logits=output.logits.unflatten(1, shape), latents=output.latents.unflatten(1, shape))

    def standardise(self, target: Tensor) -> Tensor:
        """Targets in the unit in which the experts answer: changed for regression alone."""
        return target if self.units is None else self.units.standardise(target)

    @staticmethod
    def mix(weights_BE: Tensor, logits_EBC: Tensor) -> Tensor:
        """The weighted sum of expert logits (B, C)."""
        return torch.einsum("be,ebc->bc", weights_BE, logits_EBC)

    def forward(self, inputs: Sequence[Tensor]) -> MixtureOutput:
        """The single clean pass over one (B, columns) tensor per modality."""
        return self.answer(self.embed(inputs))

    def answer(self, tokens_BnPD: Tensor) -> MixtureOutput:
        """The pass from tokens on."""
        return self.combine(self.reweighting(tokens_BnPD), self.run_experts(tokens_BnPD).logits)

    def combine(self, weights_BE: Tensor, logits_EBC: Tensor) -> MixtureOutput:
        """The pass from what the experts said on."""
        if self.units is not None:
            logits_EBC = self.units(logits_EBC)
        logits_BC = self.mix(weights_BE, logits_EBC)
        return MixtureOutput(self.calibration(logits_BC), logits_BC, weights_BE, logits_EBC.transpose(0, 1))
