"""Finds the thresholds of conformal sets and intervals, and measures what they are worth on other rows.

What is done with a threshold, and the sets' formulas, are in `service.bundle.uncertainty`; scores are the same functions here
and there. The quantile is MAPIE's (the scikit-learn-contrib library for conformal prediction): of n held-out scores the
k-th smallest, k = ceil((n + 1) x coverage), which a new score exceeds with probability at most 1 - coverage (Lei et al. 2018).
With fewer than coverage / (1 - coverage) rows there is no such score, and the threshold is None: nothing is ruled out.

Exact or approximate: the promise holds for rows that had no part in making the model. Validation rows chose the epoch and
fitted the calibration, so they lie a little closer to the truth than new rows do; thresholds from them are a little too
tight, and the guarantee is called approximate. `data.split.conformal` sets rows aside for this alone: exact.
Shapes: N rows, E experts, C labels.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, Floats
from service.bundle.manifest import TaskInfo, UncertaintyInfo, UncertaintyMeasured
from service.bundle.uncertainty import Uncertainty, assess, class_scores, disagreement
from training.tasks.metrics import true_labels
from training.uncertainty.config import UncertaintyConfig
from training.uncertainty.selective import row_losses

Target = NDArray[Any]
STRONG = 0.5  # half of the evidence cancels


def threshold(scores: Floats, coverage: float) -> float | None:
    """The conformal quantile of scores (n,), None where there are too few."""
    from mapie.conformity_scores import LACConformityScore

    alpha = 1 - coverage
    if math.ceil((len(scores) + 1) * (1 - alpha)) > len(scores):
        return None
    quantiles = LACConformityScore().get_conformity_score_quantiles(scores[:, None], np.array([alpha]), cv="prefit")
    return float(quantiles[0])


def fit_uncertainty(
    prediction_NC: Floats,
    target: Target,
    explanation: Explanation,
    *,
    task: TaskInfo,
    config: UncertaintyConfig,
    guarantee: Literal["exact", "approximate"],
) -> UncertaintyInfo:
    """Thresholds and the limit of disagreement from held-out rows, `explanation` being theirs towards the stated labels."""
    return UncertaintyInfo(
        **_thresholds(prediction_NC, target, task, config.coverage),
        coverage=config.coverage,
        guarantee=guarantee,
        num_rows=len(target),
        rows_by_class=_rows_by_class(target, task),
        disagreement_quantile=config.disagreement_quantile,
        disagreement_limit=_disagreement_limit(explanation, config.disagreement_quantile),
    )


def _disagreement_limit(explanation: Explanation, quantile: float) -> float | None:
    """The quantile of held-out rows, but no less than `STRONG`: where experts hardly ever differ, a little is not strong."""
    if explanation.contribution.shape[1] == 1:
        return None
    return max(STRONG, float(np.quantile(disagreement(explanation.contribution), quantile)))


def _thresholds(prediction_NC: Floats, target: Target, task: TaskInfo, coverage: float) -> dict[str, Any]:
    if task.kind == "regression":
        residual_N = np.abs(prediction_NC[:, 0].astype(np.float64) - target.reshape(-1))
        return {"method": "absolute residual", "thresholds": (threshold(residual_N, coverage),)}
    scores_NC, true_NC = class_scores(prediction_NC), true_labels(target, task)
    thresholds = tuple(threshold(scores_NC[true_NC[:, c], c], coverage) for c in range(len(task.labels)))
    if task.kind != "multilabel":
        return {"method": "class-conditional", "thresholds": thresholds}
    present_NC = prediction_NC.astype(np.float64)
    absent = tuple(threshold(present_NC[~true_NC[:, c], c], coverage) for c in range(len(task.labels)))
    return {"method": "per label", "thresholds": thresholds, "thresholds_absent": absent}


def covered(uncertainty: Uncertainty, prediction_NC: Floats, target: Target, task: TaskInfo) -> NDArray[np.bool_]:
    """Whether the truth lies in the set or interval (N,); for multilabel tasks label by label (N, C)."""
    if uncertainty.possible is None:
        residual_N = np.abs(prediction_NC[:, 0].astype(np.float64) - target.reshape(-1))
        return np.asarray(residual_N <= (np.inf if uncertainty.half_width is None else uncertainty.half_width))
    true_NC = true_labels(target, task)
    if uncertainty.sure is None:
        return np.asarray((uncertainty.possible & true_NC).any(axis=1))
    return np.where(true_NC, uncertainty.possible, ~uncertainty.sure)


def measure(
    prediction_NC: Floats, target: Target, explanation: Explanation, *, task: TaskInfo, info: UncertaintyInfo, split: str
) -> UncertaintyMeasured:
    """What sets, intervals and flags were worth on the rows of `split`."""
    uncertainty = assess(prediction_NC, explanation, task, info)
    loss_N, abstain_N, flagged_N = row_losses(prediction_NC, target, task), uncertainty.abstain, uncertainty.experts_disagree
    covered_N = covered(uncertainty, prediction_NC, target, task)
    return UncertaintyMeasured(
        split=split,
        num_rows=len(target),
        rows_by_class=_rows_by_class(target, task),
        coverage=float(covered_N.mean()),
        coverage_by_class=_by_class(covered_N, target, task),
        mean_set_size=None if uncertainty.possible is None else float(uncertainty.possible.sum(axis=1).mean()),
        abstain_rate=float(abstain_N.mean()),
        experts_disagree_rate=None if flagged_N is None else float(flagged_N.mean()),
        error=float(loss_N.mean()),
        error_kept=mean(loss_N[~abstain_N]),
        error_abstained=mean(loss_N[abstain_N]),
    )


def _rows_by_class(target: Target, task: TaskInfo) -> dict[str, int]:
    """How many rows each class has, or how many have each label; a promise class by class is worth what its rows are."""
    if task.kind == "regression":
        return {}
    return dict(zip(task.labels, true_labels(target, task).sum(axis=0).tolist(), strict=True))


def _by_class(covered_N: NDArray[np.bool_], target: Target, task: TaskInfo) -> dict[str, float]:
    """Coverage by true class, of those that occur; multilabel: by label."""
    if task.kind == "regression":
        return {}
    if task.kind == "multilabel":
        return dict(zip(task.labels, covered_N.mean(axis=0).tolist(), strict=True))
    columns = zip(task.labels, true_labels(target, task).T, strict=True)
    return {name: float(covered_N[rows].mean()) for name, rows in columns if rows.any()}


def mean(values: Floats) -> float | None:
    """The mean, None of nothing: JSON has no NaN."""
    return float(values.mean()) if len(values) else None
