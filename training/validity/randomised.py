"""The sanity check: what explanations would a model give that has learned nothing?

Experts and reweighting network are initialised anew (the model itself stays as it is), several times, and contributions towards
the same labels are compared by rank over experts. An explanation that hardly changes tells of the architecture or of the
inputs and not of what was learned (Adebayo et al. 2018, "Sanity checks for saliency maps").

Shape suffixes: N rows, B batch, E experts, C outputs, M random models.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.explanation import contributions
from service.bundle.output import Output
from service.bundle.schema import FeatureSchema
from service.bundle.validity import Estimate, RandomisedFigures
from training.checkpoint import Checkpoint
from training.data.rows import RowArray
from training.inference import answers
from training.model.build import with_fresh_experts
from training.model.mixture import I2MoE
from training.validity.config import ValidityConfig
from training.validity.estimates import Floats, row_spearman

_INTERVAL = 1.96  # standard errors of a normal mean


def random_contributions(
    checkpoint: Checkpoint, arrays: Mapping[str, RowArray], label_N: NDArray[np.integer], config: ValidityConfig
) -> list[Floats]:
    """Contributions (N, E) towards the same labels, of every random model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        models = [with_fresh_experts(checkpoint.model, checkpoint.recipe.model) for _ in range(config.num_randomised)]
    outputs = _run(checkpoint.model, models, checkpoint.schema, arrays, workers=checkpoint.recipe.train.workers)
    towards = label_N[:, None, None]
    return [np.take_along_axis(contributions(output, checkpoint.task), towards, axis=2)[:, :, 0] for output in outputs]


def _run(
    model: I2MoE, models: list[I2MoE], schema: FeatureSchema, arrays: Mapping[str, RowArray], *, workers: int
) -> list[Output]:
    """The outputs of every model on the tokens of one: encoders run once."""
    for other in models:
        other.eval()

    def function(inputs: list[Tensor]) -> list[Tensor]:
        tokens_BnPD = model.embed(inputs)
        found = [other.answer(tokens_BnPD) for other in models]
        weights_MBE = torch.stack([output.expert_weights_BE for output in found])
        logits_MEBC = torch.stack([output.expert_logits_BEC.transpose(0, 1) for output in found])
        return [
            weights_MBE,
            logits_MEBC,
            torch.stack([o.logits_BC for o in found]),
            torch.stack([o.prediction_BC for o in found]),
        ]

    told = [part.cpu().numpy() for part in answers(model, function, schema, arrays, workers=workers)]
    return [Output(p, logits, w, e.swapaxes(0, 1)) for w, e, logits, p in zip(*told, strict=True)]


def randomised_figures(contribution_NE: Floats, random_MNE: Sequence[Floats]) -> RandomisedFigures | None:
    """Mean rank correlation with the contributions of random models; None where one side has no ranks at all."""
    means = [_mean_of_defined(row_spearman(contribution_NE, random_NE)) for random_NE in random_MNE]
    defined = np.array([mean for mean in means if mean is not None])
    if len(defined) < 2:
        return None
    value, error = float(defined.mean()), float(defined.std(ddof=1) / np.sqrt(len(defined)))
    interval = Estimate(value=value, low=max(-1.0, value - _INTERVAL * error), high=min(1.0, value + _INTERVAL * error))
    return RandomisedFigures(num_models=len(defined), spearman=interval)


def _mean_of_defined(values_N: Floats) -> float | None:
    kept = values_N[np.isfinite(values_N)]
    return float(kept.mean()) if len(kept) else None
