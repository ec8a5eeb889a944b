"""All checks of a model's explanations over one set of rows.

What is explained is what the service explains: every row's predicted label. Values of coalitions are margins towards it, by
the formula of contributions (`service.bundle.explanation`); for regression towards the side of the training mean on which
the prediction lies. Shape suffixes: S coalitions, N rows, n modalities, P patches,
D hidden, G stand-ins, E experts, C outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.explanation import explain, margins
from service.bundle.manifest import CalibrationInfo, ExpertInfo, TaskInfo
from service.bundle.output import Output
from service.bundle.validity import ExplanationValidity, MatchingFigures
from training.checkpoint import Checkpoint
from training.data.rows import RowArray, take
from training.validity.agreement import interaction_figures, shapley_agreement
from training.validity.attribution import attribute, sum_of
from training.validity.coalitions import MAX_MODALITIES, coalition_logits, stand_ins
from training.validity.config import ValidityConfig
from training.validity.estimates import Floats, estimate
from training.validity.orders import Estimator, order_figures, rank_modalities
from training.validity.randomised import random_contributions, randomised_figures
from training.validity.resampled import resampled_figures
from training.validity.tokens import asking, embed_rows

Figures = dict[str, Any]  # fields of `ExplanationValidity`


@dataclass(frozen=True, slots=True)
class Explained:
    """The rows that are looked at: whom they are explained towards, and the experts' contributions."""

    label: NDArray[np.integer]  # (N,)
    direction: Floats  # (N,), -1 where regression predicts below the training mean, else 1
    contribution: Floats  # (N, E), times the direction


def judge(
    checkpoint: Checkpoint, arrays: Mapping[str, RowArray], output: Output, split: str, calibration: CalibrationInfo
) -> ExplanationValidity | None:
    """Check the explanations of `output`, the model's answers to `arrays`; None where there is nothing to compare.

    Dataset-level shares are resampled over all rows; whatever needs more passes through the model looks at `max_rows`.
    """
    config, roles = checkpoint.recipe.validity, checkpoint.model.roles
    if not config.enabled or len(roles) == 1:
        return None
    generator = np.random.default_rng(config.seed)
    chosen = draw(generator, len(output.logits), config.max_rows)
    background = draw(generator, len(chosen), config.num_background)
    looked_at = {name: take(array, chosen) for name, array in arrays.items()}
    rows = explained(output.rows(chosen), checkpoint.task, calibration)
    with asking(checkpoint.model):
        tokens_NnPD = embed_rows(checkpoint.model, checkpoint.schema, looked_at, workers=checkpoint.recipe.train.workers)
        figures = _modality_figures(checkpoint, tokens_NnPD, background, rows)
        random = random_contributions(checkpoint, tokens_NnPD, rows.label, config)
        randomised = randomised_figures(rows.contribution, (rows.direction[:, None] * found_NE for found_NE in random))
    return ExplanationValidity(
        split=split,
        num_rows=len(chosen),
        hidden_by="learned token" if checkpoint.schema.missing == "learned" else "other rows",
        objective=checkpoint.recipe.objective.kind,
        matching=_matching(checkpoint),
        randomised=randomised,
        resampled=resampled_figures(explain(output, checkpoint.task, calibration).share, roles, config),
        **figures,
    )


def _matching(checkpoint: Checkpoint) -> MatchingFigures | None:
    """What training found, of a decomposition."""
    found = checkpoint.provenance.get("decomposition")
    return found and MatchingFigures(contributions=found["r2_contributions"], whole=found["r2_sum"])


def draw(generator: np.random.Generator, num_rows: int, at_most: int) -> NDArray[np.intp]:
    """Up to `at_most` different positions, in rising order."""
    return np.sort(generator.permutation(num_rows)[:at_most])


def explained(output: Output, task: TaskInfo, calibration: CalibrationInfo) -> Explained:
    """Contributions towards what is predicted."""
    explanation = explain(output, task, calibration)
    contribution_NE = explanation.contribution.astype(np.float64)
    margin_N = contribution_NE.sum(axis=1)
    direction_N = np.where((task.kind == "regression") & (margin_N < 0), -1.0, 1.0)
    return Explained(explanation.label, direction_N, direction_N[:, None] * contribution_NE)


def coalition_values(logits_SNC: Floats, rows: Explained, task: TaskInfo) -> Floats:
    """The game (S, N) of every row: the margin towards its label when only the coalition is shown."""
    towards = np.take_along_axis(margins(logits_SNC, task), rows.label[None, :, None], axis=2)[:, :, 0]
    values_SN: Floats = rows.direction * towards.astype(np.float64)
    return values_SN


def _modality_figures(checkpoint: Checkpoint, tokens_NnPD: Tensor, background: NDArray[np.intp], rows: Explained) -> Figures:
    num = len(checkpoint.schema.names)
    if num > MAX_MODALITIES:
        return {"notes": (f"coalitions of {num} modalities were not gone through: exact up to {MAX_MODALITIES}",)}
    hidden_GnPD = stand_ins(checkpoint.model, checkpoint.schema, tokens_NnPD, background)
    logits_SNC = coalition_logits(checkpoint.model, tokens_NnPD, hidden_GnPD)
    values_SN = coalition_values(logits_SNC, rows, checkpoint.task)
    return compare(values_SN, rows.contribution, checkpoint.model.roles, checkpoint.schema.names, checkpoint.recipe.validity)


def compare(
    values_SN: Floats,
    contribution_NE: Floats,
    experts: Sequence[ExpertInfo],
    modalities: Sequence[str],
    config: ValidityConfig,
) -> Figures:
    """Contributions (N, E) against the games (S, N)."""

    def estimator(columns_NK: Floats, function: Any) -> Any:
        return estimate(columns_NK, function, count=config.num_bootstraps, seed=config.seed)

    synergy_N, redundancy_N = (sum_of(contribution_NE, experts, kind) for kind in ("synergy", "redundancy"))
    found: Figures = {"interactions": interaction_figures(values_SN, synergy_N, redundancy_N, modalities, estimator)}
    if all(expert.modality is None for expert in experts):
        return found | {"notes": ("no expert speaks for one modality, so explanations rank none",)}
    return found | _ranking(values_SN, attribute(contribution_NE, experts, modalities), estimator)


def _ranking(values_SN: Floats, attribution_Nn: Floats, estimator: Estimator) -> Figures:
    order_Nn = rank_modalities(attribution_Nn)
    return {
        "deletion": order_figures(values_SN, order_Nn, estimator, insertion=False),
        "insertion": order_figures(values_SN, order_Nn, estimator, insertion=True),
        "shapley": shapley_agreement(values_SN, attribution_Nn, estimator),
    }
