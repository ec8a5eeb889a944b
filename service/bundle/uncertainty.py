"""How sure is a prediction? Prediction sets and intervals with guaranteed coverage, entropy, disagreement, and two flags.

Sets and intervals are split conformal (Vovk, Gammerman and Shafer 2005; Lei et al. 2018): a threshold is a quantile of how
far held-out rows lay from the truth, and whatever lies no farther from the prediction cannot be ruled out. For a new record
exchangeable with those rows, over the draw of both,

    binary, multiclass   set = {c: 1 - p_c <= threshold_c}, threshold_c from the held-out rows of class c alone:
                         P(truth in set | truth = c) >= coverage for every c (Sadinle, Lei and Wasserman 2019, LAC scores;
                         Mondrian, that is class-conditional). With one threshold for all classes 90 % could be reached
                         by never naming a class that 7 % of rows belong to; so every class has its own.
    multilabel           the same for presence (1 - p_c) and absence (p_c) of each label on its own
    regression           interval = prediction -+ threshold, from absolute residuals: P(truth in interval) >= coverage

What the answer states is always in the set (multilabel: for each label the side of 0.5 it is on): a set without it would
contradict the answer, and more labels only raise the coverage. So no set is empty, and a model that commits says one thing.

    abstain        the set holds another label too (multilabel: the stated label's absence cannot be ruled out; regression: no
                   bounded interval is known)
    entropy        -sum p log p over log C, between 0 and 1; multilabel: mean over labels of the entropy of each, in bits
    disagreement   1 - |sum over experts of contribution| / sum of |contribution|, between 0 and 1: 0 where all experts
                   pull one way, 1 where their evidence cancels; towards the stated label
    experts_disagree   disagreement above the manifest's limit: a high quantile of held-out rows, and at least half of the
                   evidence

Plain numpy over whole batches; knows nothing of how thresholds are found (`training.uncertainty`), requests or torch.
Shapes: B records, E experts, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import DIGITS, Explanation, Floats, join_words, listed
from service.bundle.manifest import TaskInfo, UncertaintyInfo

Booleans = NDArray[np.bool_]
_EVEN = 0.5  # multilabel: from which probability a label counts as present


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """The uncertainty of B predictions; what a kind of task does not have is None."""

    possible: Booleans | None  # (B, C), the set; multilabel: labels whose presence cannot be ruled out
    sure: Booleans | None  # (B, C), multilabel: labels whose absence can be ruled out
    half_width: float | None  # of every interval; None for an unbounded one, and outside regression
    entropy: Floats | None  # (B,)
    disagreement: Floats | None  # (B,), None for a single expert
    abstain: Booleans  # (B,)
    experts_disagree: Booleans | None  # (B,), None for a single expert


def class_scores(prediction_BC: Floats) -> Floats:
    """Nonconformity (B, C) of every label: 1 - its probability. In float64, here and where thresholds are found."""
    scores_BC: Floats = 1.0 - prediction_BC.astype(np.float64)
    return scores_BC


def within(scores_BC: Floats, thresholds: Sequence[float | None]) -> Booleans:
    """Which scores (B, C) a threshold per column lets through; None lets everything through."""
    limits_C = np.array([np.inf if threshold is None else threshold for threshold in thresholds])
    return np.asarray(scores_BC <= limits_C)


def entropy(prediction_BC: Floats, task: TaskInfo) -> Floats:
    """The normalised predictive entropy (B,) by the formula of this module."""
    p_BC = prediction_BC.astype(np.float64)
    if task.kind == "multilabel":
        bits_B: Floats = (_surprise(p_BC) + _surprise(1 - p_BC)).mean(axis=1) / np.log(2)
        return bits_B
    share_B: Floats = np.minimum(_surprise(p_BC).sum(axis=1) / np.log(p_BC.shape[1]), 1.0)
    return share_B


def _surprise(p: Floats) -> Floats:
    """-p log p, 0 at 0."""
    nats: Floats = -p * np.log(np.where(p > 0, p, 1.0))
    return nats


def disagreement(contribution_BE: Floats) -> Floats:
    """How much of the experts' evidence cancels (B,); 0 where there is none."""
    contribution_BE = contribution_BE.astype(np.float64)
    total_B = np.abs(contribution_BE).sum(axis=1)
    kept_B = np.divide(np.abs(contribution_BE.sum(axis=1)), total_B, out=np.ones_like(total_B), where=total_B > 0)
    cancelled_B: Floats = np.maximum(1.0 - kept_B, 0.0)  # rounding may leave a little less
    return cancelled_B


def assess(prediction_BC: Floats, explanation: Explanation, task: TaskInfo, info: UncertaintyInfo) -> Uncertainty:
    """The uncertainty of every prediction. `explanation` is of the same records, towards their stated labels."""
    disagreement_B = disagreement(explanation.contribution) if explanation.contribution.shape[1] > 1 else None
    possible_BC, sure_BC = _sets(prediction_BC, explanation, task, info)
    half_width = info.thresholds[0] if task.kind == "regression" else None
    return Uncertainty(
        possible=possible_BC,
        sure=sure_BC,
        half_width=half_width,
        entropy=None if task.kind == "regression" else entropy(prediction_BC, task),
        disagreement=disagreement_B,
        abstain=_abstains(possible_BC, sure_BC, half_width, explanation),
        experts_disagree=_beyond(disagreement_B, info.disagreement_limit),
    )


def _beyond(disagreement_B: Floats | None, limit: float | None) -> Booleans | None:
    return None if disagreement_B is None or limit is None else np.asarray(disagreement_B > limit)


def _sets(
    prediction_BC: Floats, explanation: Explanation, task: TaskInfo, info: UncertaintyInfo
) -> tuple[Booleans | None, Booleans | None]:
    """Labels that are possible (B, C), and for multilabel tasks those that are sure (B, C)."""
    if task.kind == "regression":
        return None, None
    stated_BC = explanation.label[:, None] == np.arange(len(task.labels))
    possible_BC = within(class_scores(prediction_BC), info.thresholds)
    if task.kind != "multilabel":
        return possible_BC | stated_BC, None
    present_BC = prediction_BC >= _EVEN
    absent_BC = within(prediction_BC.astype(np.float64), info.thresholds_absent) | ~present_BC
    return possible_BC | present_BC, ~absent_BC


def _abstains(
    possible_BC: Booleans | None, sure_BC: Booleans | None, half_width: float | None, explanation: Explanation
) -> Booleans:
    if possible_BC is None:
        return np.full(len(explanation.label), half_width is None)
    if sure_BC is None:
        return np.asarray(possible_BC.sum(axis=1) > 1)
    return ~np.take_along_axis(sure_BC, explanation.label[:, None], axis=1)[:, 0]


def tell(uncertainty: Uncertainty, prediction_BC: Floats, *, task: TaskInfo, info: UncertaintyInfo) -> list[dict[str, Any]]:
    """Every prediction's uncertainty as a client reads it; what the kind of task does not have is left out."""
    num_records, half_width = len(prediction_BC), uncertainty.half_width
    told: dict[str, list[Any]] = {}
    if uncertainty.possible is None:
        told["interval"] = [_interval(value, half_width) for value in prediction_BC[:, 0].tolist()]
    else:
        told["set"] = _names(uncertainty.possible, task)
    if uncertainty.sure is not None:
        told["sure"] = _names(uncertainty.sure, task)
    told["coverage"] = [info.coverage] * num_records
    if uncertainty.entropy is not None:
        told["entropy"] = listed(uncertainty.entropy)
    else:
        told["half_width"] = [None if half_width is None else round(half_width, DIGITS)] * num_records
    disagreement_B, flagged_B = uncertainty.disagreement, uncertainty.experts_disagree
    told["disagreement"] = [None] * num_records if disagreement_B is None else listed(disagreement_B)
    told["abstain"] = uncertainty.abstain.tolist()
    told["experts_disagree"] = [None] * num_records if flagged_B is None else flagged_B.tolist()
    return [dict(zip(told, record, strict=True)) for record in zip(*told.values(), strict=True)]


def _names(chosen_BC: Booleans, task: TaskInfo) -> list[list[str]]:
    return [[name for name, is_chosen in zip(task.labels, row, strict=True) if is_chosen] for row in chosen_BC.tolist()]


def _interval(value: float, half_width: float | None) -> list[float | None]:
    """Its two ends; None for an end that is not bounded."""
    if half_width is None:
        return [None, None]
    return [round(value - half_width, DIGITS), round(value + half_width, DIGITS)]


def caution(told: dict[str, Any], label: str, info: UncertaintyInfo) -> str:
    """What of a prediction's uncertainty a person should hear: a sentence per flag that is raised, else nothing."""
    sentences = []
    if told["abstain"]:
        sentences.append(f"Caution: {_open_question(told, label)}.")
    if told["experts_disagree"]:
        share = f"{100 * info.disagreement_quantile:.0f} %"
        sentences.append(
            f"Caution: the evidence is divided, parts of it cancel each other more than in {share} of earlier cases."
        )
    return " ".join(sentences)


def _open_question(told: dict[str, Any], label: str) -> str:
    often = f"{100 * told['coverage']:g} % of cases"
    if "interval" in told:
        return f"too few cases were set aside to say within what range the value lies in {often}"
    if "sure" in told:
        return f"{label} may also be absent; answers held open like this include the truth in {often}"
    possible = f"{join_words(told['set'])} {'both' if len(told['set']) == 2 else 'all'} remain possible"
    return f"the model does not commit itself, {possible} (such lists hold the truth in {often})"
