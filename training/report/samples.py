"""A few explained test rows, chosen by rules that are printed beside them and by nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, Floats, describe_expert, join_words, summarise
from service.bundle.manifest import ExpertInfo, TaskInfo
from training.data.rows import RowArray, absent_rows
from training.evaluation import Evaluation
from training.tasks.metrics import true_labels

Booleans = NDArray[np.bool_]
_TIE_BREAK = 1e-4  # less than one expert's part of the agreement, for up to 10,000 experts


@dataclass(frozen=True, slots=True)
class SampleExpert:
    """One expert's say in one row."""

    name: str
    role: str
    weight: float
    contribution: float
    share: float
    prediction: float  # of what is stated, were the expert alone
    bar: float  # the contribution over the row's largest, between -1 and 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One explained row."""

    title: str
    rule: str
    row: int  # position among the test rows, from 1
    summary: str
    true: str  # the true label, labels or value
    predicted: str
    correct: bool | None  # None for regression
    stated: str  # what `prediction` is: "probability of dead"
    prediction: float
    margin: float  # sum of the contributions
    missing: tuple[str, ...]  # whole modalities
    experts: tuple[SampleExpert, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """Chooses the eligible row (N,) with the highest score (N,), the first of equals."""

    title: str
    text: str
    eligible: Booleans
    score: Floats


@dataclass(frozen=True, slots=True)
class ExplainedRows:
    """The rows to choose from, and what is known of them."""

    evaluation: Evaluation
    explanation: Explanation
    absent: Mapping[str, Booleans]  # modality -> (N,), True where a row lacks all of it
    task: TaskInfo
    experts: Sequence[ExpertInfo]


def absent_modalities(arrays: Mapping[str, RowArray]) -> dict[str, Booleans]:
    """For each modality which rows of its (N, columns) array hold no value at all."""
    return {name: absent_rows(array) for name, array in arrays.items()}


def choose_samples(rows: ExplainedRows) -> tuple[Sample, ...]:
    """Up to five rows, none twice; a rule that finds no row is left out."""
    samples: list[Sample] = []
    free = np.ones(len(rows.evaluation.target), np.bool_)
    for rule in _rules(rows):
        eligible = rule.eligible & free
        if eligible.any():
            row = int(np.where(eligible, rule.score, -np.inf).argmax())
            free[row] = False
            samples.append(_tell(rows, row, rule))
    return tuple(samples)


def _rules(rows: ExplainedRows) -> Iterator[_Rule]:
    yield from _rules_of_regression(rows) if rows.task.kind == "regression" else _rules_of_labels(rows)
    lacking = np.any(list(rows.absent.values()), axis=0)
    yield _Rule("Without a modality", "the first row that lacks a whole modality", lacking, np.zeros(len(lacking)))


def _rules_of_regression(rows: ExplainedRows) -> Iterator[_Rule]:
    prediction_N, everyone = rows.evaluation.output.prediction[:, 0], np.ones(len(rows.evaluation.target), np.bool_)
    error_N = np.abs(prediction_N - rows.evaluation.target.reshape(-1))
    yield _Rule("Highest prediction", "the highest prediction", everyone, prediction_N)
    yield _Rule("Lowest prediction", "the lowest prediction", everyone, -prediction_N)
    yield _Rule("Closest", "the smallest error", everyone, -error_N)
    yield _Rule("Farthest off", "the largest error", everyone, error_N)


def _rules_of_labels(rows: ExplainedRows) -> Iterator[_Rule]:
    prediction_NC, label_N = rows.evaluation.output.prediction, rows.explanation.label
    right, stated = _is_right(rows), np.take_along_axis(prediction_NC, label_N[:, None], axis=1)[:, 0]
    if rows.task.kind == "binary":
        event, risk = label_N == 1, prediction_NC[:, 1]
        yield _Rule("Highest risk, right", "the highest risk among rows with the event, predicted as such", right & event, risk)
        yield _Rule("Lowest risk, right", "the lowest risk among rows without it, predicted as such", right & ~event, -risk)
    else:
        yield _Rule("Most certain, right", "the highest probability among right predictions", right, stated)
        yield _Rule("Least certain, right", "the lowest probability among right predictions", right, -stated)
    yield _Rule("Most certain, wrong", "the highest probability of a predicted label that is wrong", ~right, stated)
    if len(rows.experts) == 1:
        return  # nobody to dispute with
    disputed = -rows.explanation.agreement - _TIE_BREAK * stated
    text = "the fewest experts that alone agree; of equals, the least certain"
    yield _Rule("Most disputed", text, np.ones(len(right), np.bool_), disputed)


def _is_right(rows: ExplainedRows) -> Booleans:
    """In which rows (N,) is the predicted label the true one, or one of the true ones?"""
    true_NC = true_labels(rows.evaluation.target, rows.task)
    return np.take_along_axis(true_NC, rows.explanation.label[:, None], axis=1)[:, 0]


def _tell(rows: ExplainedRows, row: int, rule: _Rule) -> Sample:
    task, explanation, prediction_C = rows.task, rows.explanation, rows.evaluation.output.prediction[row]
    label = int(explanation.label[row])
    of_labels = task.kind != "regression"
    stated = len(task.labels) - 1 if task.kind == "binary" else label
    return Sample(
        title=rule.title,
        rule=rule.text,
        row=row + 1,
        summary=summarise(explanation.records()[row], prediction_C.tolist(), task=task, experts=rows.experts),
        true=_true_text(rows, row),
        predicted=task.labels[label] if of_labels else f"{prediction_C[0]:.3f}",
        correct=bool(_is_right(rows)[row]) if of_labels else None,
        stated=f"probability of {task.labels[stated]}" if of_labels else "prediction",
        prediction=float(prediction_C[stated]),
        margin=float(explanation.contribution[row].sum()),
        missing=tuple(name for name, lacking in rows.absent.items() if lacking[row]),
        experts=tuple(_tell_experts(explanation, row, stated, rows.experts)),
    )


def _true_text(rows: ExplainedRows, row: int) -> str:
    if rows.task.kind == "regression":
        return f"{float(rows.evaluation.target.reshape(-1)[row]):.3f}"
    is_true_C = true_labels(rows.evaluation.target[row : row + 1], rows.task)[0]
    return join_words([name for name, is_true in zip(rows.task.labels, is_true_C, strict=True) if is_true]) or "none"


def _tell_experts(explanation: Explanation, row: int, stated: int, experts: Sequence[ExpertInfo]) -> Iterator[SampleExpert]:
    modalities = [expert.modality for expert in experts if expert.modality is not None]
    contribution_E = explanation.contribution[row]
    largest = float(np.abs(contribution_E).max()) or 1.0
    for e, expert in enumerate(experts):
        yield SampleExpert(
            name=expert.name,
            role=describe_expert(expert, modalities),
            weight=float(explanation.weight[row, e]),
            contribution=float(contribution_E[e]),
            share=float(explanation.share[row, e]),
            prediction=float(explanation.expert_prediction[row, e, stated]),
            bar=float(contribution_E[e]) / largest,
        )
