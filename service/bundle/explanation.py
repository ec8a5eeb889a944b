"""From a model's outputs to an explanation: weights, contributions, agreement, one sentence.

A weight is not an importance. The reweighting network says how much of each expert's logits enters the mixture, but
experts speak on different logit scales, so an expert with a small weight may decide the case. The contribution measures
it; for one label c of a record, with C labels

    contribution_e = weight_e * (logit_e,c - mean over k != c of logit_e,k)         binary and multiclass
    contribution_e = weight_e * logit_e,c                                           multilabel
    contribution_e = weight_e * (output_e - training mean)                          regression

Contributions add up to the margin of the uncalibrated mixture (its logit for multilabel, its distance from the training
mean for regression), because the mixture is the weighted sum of expert logits (I2MoE, ICML 2025, section 3.3).

Plain numpy over whole batches; knows nothing of graphs, requests or torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import (
    AgreementSummary,
    CalibrationInfo,
    DatasetExplanation,
    ExpertInfo,
    ExpertSummary,
    Spread,
    TaskInfo,
)
from service.bundle.output import Output

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

DIGITS = 6  # of every number that is told: enough for every reader, and float32 holds no more
_NUM_LEADING = 2  # features that a sentence names


def rounded(values: Floats) -> Floats:
    """Numbers as they are told: in float64, of `DIGITS` decimals."""
    return values.astype(np.float64).round(DIGITS)


def listed(values: Floats) -> Any:
    """Numbers as they are told, Python's own, in lists of the array's shape."""
    return rounded(values).tolist()


def calibrate(logits_C: Floats, task: TaskInfo, calibration: CalibrationInfo) -> Floats:
    """Logits (..., C) to calibrated predictions (..., C): softmax or sigmoid of scale * logits + bias.

    The same map as inside the graph; used to say what one expert alone would answer. Regression: unchanged.
    """
    if task.kind == "regression":
        return logits_C
    scores = logits_C * np.asarray(calibration.scale, np.float32) + np.asarray(calibration.bias, np.float32)
    if task.kind == "multilabel":
        sigmoid: Floats = 0.5 + 0.5 * np.tanh(0.5 * scores)  # written so that no logit overflows
        return sigmoid
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    softmax: Floats = scores / scores.sum(axis=-1, keepdims=True)
    return softmax


def decide(prediction_C: Floats, task: TaskInfo) -> Ints:
    """Predictions (..., C) to label positions (...): the threshold for binary tasks, else the largest probability.

    Regression has one output and always answers 0.
    """
    if task.kind == "binary":
        return (prediction_C[..., -1] >= task.threshold).astype(np.intp)
    label: Ints = prediction_C.argmax(axis=-1)
    return label


def contributions(output: Output, task: TaskInfo) -> Floats:
    """Every expert's contribution to every label (B, E, C), by the formulas of this module."""
    return output.expert_weights[:, :, None] * margins(output.expert_logits, task)


def margins(logits_C: Floats, task: TaskInfo) -> Floats:
    """What logits (..., C) say for each label: the bracket in this module's formulas."""
    if task.kind == "regression":
        return logits_C - np.float32(task.training_mean or 0.0)
    if task.kind == "multilabel":
        return logits_C
    others_C = (logits_C.sum(axis=-1, keepdims=True) - logits_C) / (logits_C.shape[-1] - 1)
    margin_C: Floats = logits_C - others_C
    return margin_C


class RecordExplanation(NamedTuple):
    """What a sentence about one record needs, in Python's own numbers; fields of `Explanation`."""

    label: int
    contribution: list[float]
    share: list[float]
    dominant: int
    agreement: float


@dataclass(frozen=True)
class Explanation:
    """The explanation of B records by E experts. `label` is the explained label: the predicted one unless said otherwise.

    What each expert alone would answer is worked out where it is asked for, and not for answers in arrays, which do not tell it.
    """

    task: TaskInfo
    calibration: CalibrationInfo
    expert_logits: Floats  # (B, E, C)
    label: Ints  # (B,)
    weight: Floats  # (B, E), sums to 1
    contribution: Floats  # (B, E), sums to the margin of `label`
    share: Floats  # (B, E), |contribution| over the sum of |contribution|

    @cached_property
    def dominant(self) -> Ints:
        """The expert with the largest share (B,)."""
        dominant_B: Ints = self.share.argmax(axis=1)
        return dominant_B

    @cached_property
    def expert_prediction(self) -> Floats:
        """What each expert alone would answer, calibrated like the mixture (B, E, C)."""
        return calibrate(self.expert_logits, self.task, self.calibration)

    @cached_property
    def agreement(self) -> Floats:
        """The share of experts that alone would answer `label` (B,)."""
        agrees_BE = decide(self.expert_prediction, self.task) == self.label[:, None]
        share_B: Floats = agrees_BE.sum(axis=1) / agrees_BE.shape[1]
        return share_B

    def records(self) -> list[RecordExplanation]:
        """Record by record: taking one number at a time out of an array costs more than all the arithmetic."""
        columns = (getattr(self, name).tolist() for name in RecordExplanation._fields)
        return [RecordExplanation(*record) for record in zip(*columns, strict=True)]


def explain(output: Output, task: TaskInfo, calibration: CalibrationInfo, label: Ints | None = None) -> Explanation:
    """Explain every record of `output`, towards `label` (B,) or else towards its predicted label."""
    label = decide(output.prediction, task) if label is None else label
    contribution_BE = contributions(output, task)[np.arange(len(output)), :, label]
    magnitude_BE = np.abs(contribution_BE)
    total_B1 = magnitude_BE.sum(axis=1, keepdims=True)
    # All experts exactly neutral: nothing decides, so every expert has the same share.
    uniform = 1.0 / contribution_BE.shape[1]
    share_BE = np.divide(magnitude_BE, total_B1, out=np.full_like(magnitude_BE, uniform), where=total_B1 > 0)
    return Explanation(task, calibration, output.expert_logits, label, output.expert_weights, contribution_BE, share_BE)


def join_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def describe_expert(expert: ExpertInfo, modalities: Sequence[str]) -> str:
    """The expert's role in words for a person."""
    names = join_words([name.replace("_", " ") for name in modalities]) or "the modalities"
    if expert.modality is not None:
        return f"{expert.modality.replace('_', ' ')} on its own"
    roles = {"synergy": f"the interplay of {names}", "redundancy": f"what {names} have in common"}
    return roles.get(expert.kind, "the model as a whole")


def risk_band(risk: float, task: TaskInfo) -> str | None:
    """The name of the band a risk falls into; None where the model has no bands.

    Limits are compared as float32, as the graph answers: a risk of 0.7 is not below a limit of 0.7.
    """
    if not task.risk_bands:
        return None
    exact = np.float32(risk)
    below = (band.name for band in task.risk_bands if exact < np.float32(band.below))
    return next(below, task.risk_bands[-1].name)


def summarise(
    explanation: RecordExplanation,
    prediction_C: Sequence[float],
    *,
    task: TaskInfo,
    experts: Sequence[ExpertInfo],
    leading: Sequence[tuple[str, float]] = (),
    caution: str = "",  # further sentences, of `service.bundle.uncertainty`
) -> str:
    """One sentence for a person: the risk, the strongest evidence and where it points, and how far the experts agree.

    `leading` are the features that weigh most in the strongest evidence, by name and attribution, where that is known; the
    sentence names them and never their values. A single expert is a baseline: it is compared with nobody, and the sentence
    says so.
    """
    label = explanation.label
    after = f" {caution}" if caution else ""
    if len(experts) == 1:
        return f"{headline(prediction_C, label, task)}; one network for all modalities, without experts to compare.{after}"
    parts = [headline(prediction_C, label, task), _strongest(explanation, task=task, experts=experts)]
    if leading and explanation.contribution[explanation.dominant] != 0:
        own = experts[explanation.dominant].modality
        parts.append(_leading(leading, label, task, own))
    if task.kind != "regression":
        parts.append(f"{_agreeing(explanation.agreement, len(experts))} alone would say {task.labels[label]}")
    return "; ".join(parts) + "." + after


def headline(prediction_C: Sequence[float], label: int, task: TaskInfo) -> str:
    """What is predicted, in a few words: the risk with its band, the label with its probability, or the value."""
    if task.kind == "regression":
        return f"Predicted {task.outcome}: {prediction_C[0]:.3g}"
    if task.kind != "binary":
        return f"Predicted {task.outcome}: {task.labels[label]} ({percent_words(prediction_C[label])})"
    band = risk_band(prediction_C[-1], task)
    return f"Risk of {task.outcome}: {percent_words(prediction_C[-1])}{f' ({band})' if band else ''}"


def percent_words(probability: float) -> str:
    """A probability in words that never claim certainty."""
    rounded = round(100 * probability)
    return {0: "less than 1 %", 100: "more than 99 %"}.get(rounded, f"{rounded} %")


def _strongest(explanation: RecordExplanation, *, task: TaskInfo, experts: Sequence[ExpertInfo]) -> str:
    dominant, contribution = explanation.dominant, explanation.contribution[explanation.dominant]
    if contribution == 0:
        return "no expert points either way"
    role = describe_expert(experts[dominant], [e.modality for e in experts if e.modality is not None])
    direction = _direction(contribution, explanation.label, task)
    return f"the strongest evidence, {role} ({100 * explanation.share[dominant]:.0f} % of all evidence), points {direction}"


def _leading(features: Sequence[tuple[str, float]], label: int, task: TaskInfo, own: str | None) -> str:
    """`within it crea (towards dead) and alb (towards alive) weigh most`; of codes and words the feature alone.

    Beside a uniqueness expert's `own` modality, another one's feature is told as its: `dx_codes of diagnosis`.
    """
    named: dict[str, float] = {}
    for name, attribution in features:
        modality, _, feature = name.partition("=")[0].partition(".")
        named.setdefault(feature if own in (None, modality) else f"{feature} of {modality}", attribution)
    told = [f"{name} ({_pull(attribution, label, task)})" for name, attribution in list(named.items())[:_NUM_LEADING]]
    return f"within it {join_words(told)} {'weigh' if len(told) > 1 else 'weighs'} most"


def _pull(attribution: float, label: int, task: TaskInfo) -> str:
    if task.kind == "regression":
        return "upwards" if attribution > 0 else "downwards"
    return _direction(attribution, label, task)


def _direction(contribution: float, label: int, task: TaskInfo) -> str:
    if task.kind == "regression":
        return f"{'above' if contribution > 0 else 'below'} the average of {task.training_mean:.3g}"
    if contribution > 0:
        return f"towards {task.labels[label]}"
    return f"towards {task.labels[1 - label]}" if task.kind == "binary" else f"away from {task.labels[label]}"


def _agreeing(agreement: float, num_experts: int) -> str:
    num_agreeing = round(agreement * num_experts)
    if num_agreeing == num_experts:
        return f"all {num_experts} experts"
    return f"{num_agreeing or 'none'} of {'' if num_agreeing else 'the '}{num_experts} experts"


def spread(values: Floats) -> Spread:
    """Mean and quantiles of values (B,)."""
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    q05, q25, q50, q75, q95 = (float(q) for q in quantiles)
    return Spread(mean=float(values.mean()), q05=q05, q25=q25, q50=q50, q75=q75, q95=q95)


def _rows_by_class(target: Ints | Floats, task: TaskInfo) -> dict[str, NDArray[np.bool_]]:
    """For each label that occurs its rows (B,); none for regression, which has no classes."""
    if task.kind == "regression":
        return {}
    is_class_BC = target == 1 if task.kind == "multilabel" else target[:, None] == np.arange(len(task.labels))
    return {name: rows for name, rows in zip(task.labels, is_class_BC.T, strict=True) if rows.any()}


def agreement_table(output: Output, target: Ints | Floats, task: TaskInfo, calibration: CalibrationInfo) -> AgreementSummary:
    """How often do all experts name one label, and is the mixture right then? The paper's Table 3, as shares of rows.

    `target` (B,) holds true label positions. Every expert decides by the mixture's own rule, calibration included.
    """
    own_BE = decide(calibrate(output.expert_logits, task, calibration), task)
    agree = (own_BE == own_BE[:, :1]).all(axis=1)
    correct = decide(output.prediction, task) == target
    return AgreementSummary(
        agree_correct=float((agree & correct).mean()),
        agree_wrong=float((agree & ~correct).mean()),
        disagree_correct=float((~agree & correct).mean()),
        disagree_wrong=float((~agree & ~correct).mean()),
    )


def explain_dataset(
    output: Output,
    target: Ints | Floats,
    *,
    task: TaskInfo,
    calibration: CalibrationInfo,
    experts: Sequence[ExpertInfo],
    split: str,
) -> DatasetExplanation:
    """The dataset-level interpretation: how each expert behaved over all rows of `output`, whole and by true class.

    Contributions are towards each record's predicted label, so a positive mean says: this expert tends to support what
    the model answers. `target` holds true label positions (B,); 0/1 per label (B, C) for multilabel tasks; for regression
    only its length counts.
    """
    explanation = explain(output, task, calibration)
    rows_by_class = _rows_by_class(target, task)
    summaries = tuple(
        ExpertSummary(
            name=expert.name,
            weight=spread(explanation.weight[:, e]),
            contribution=spread(explanation.contribution[:, e]),
            contribution_share=spread(explanation.share[:, e]),
            weight_by_class={name: float(explanation.weight[rows, e].mean()) for name, rows in rows_by_class.items()},
            contribution_by_class={name: float(explanation.contribution[rows, e].mean()) for name, rows in rows_by_class.items()},
            dominant_rate=float((explanation.dominant == e).mean()),
        )
        for e, expert in enumerate(experts)
    )
    classified = task.kind in {"binary", "multiclass"}
    agreement = agreement_table(output, target, task, calibration) if classified else None
    return DatasetExplanation(split=split, num_rows=len(target), experts=summaries, agreement=agreement)
