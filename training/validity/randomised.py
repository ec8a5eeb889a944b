"""The sanity check: what explanations would a model give that has learned nothing?

Experts and reweighting network are initialised anew (the model itself stays as it is), several times, and contributions towards
the same labels are compared by rank over experts. An explanation that hardly changes tells of the architecture or of the
inputs and not of what was learned (Adebayo et al. 2018, "Sanity checks for saliency maps").

Shape suffixes: N rows, n modalities, P patches, D hidden, E experts, C outputs, M random models.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.explanation import contributions
from service.bundle.validity import Estimate, RandomisedFigures
from training.checkpoint import Checkpoint
from training.model.build import with_fresh_experts
from training.validity.config import ValidityConfig
from training.validity.estimates import Floats, row_spearman
from training.validity.tokens import answer_rows

_INTERVAL = 1.96  # standard errors of a normal mean


def random_contributions(
    checkpoint: Checkpoint, tokens_NnPD: Tensor, label_N: NDArray[np.integer], config: ValidityConfig
) -> Iterator[Floats]:
    """Contributions (N, E) towards the same labels of one random model after the other."""
    for number in range(config.num_randomised):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed + number)
            model = with_fresh_experts(checkpoint.model, checkpoint.recipe.model)
        contribution_NEC = contributions(answer_rows(model, tokens_NnPD), checkpoint.task)
        yield np.take_along_axis(contribution_NEC, label_N[:, None, None], axis=2)[:, :, 0]


def randomised_figures(contribution_NE: Floats, random_MNE: Iterable[Floats]) -> RandomisedFigures | None:
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
