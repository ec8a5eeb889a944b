"""A few explained test rows, chosen by rules that are printed beside them and by nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import Explanation, Floats, describe_expert, summarise
from service.bundle.manifest import ExpertInfo, TaskInfo
from training.evaluation import Evaluation

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
    probability: float  # of the stated label, were the expert alone
    bar: float  # the contribution over the row's largest, between -1 and 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One explained row."""

    title: str
    rule: str
    row: int  # position among the test rows, from 1
    summary: str
    true_label: str
    predicted_label: str
    stated_label: str  # whose probability is stated: the event, else the predicted label
    probability: float
    margin: float  # sum of the contributions
    missing: tuple[str, ...]  # whole modalities
    experts: tuple[SampleExpert, ...]

    @property
    def correct(self) -> bool:
        """Is the predicted label the true one?"""
        return self.predicted_label == self.true_label


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


def absent_modalities(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, Booleans]:
    """For each modality which rows of its (N, columns) array hold no value at all."""
    return {name: np.logical_and.reduce(np.isnan(array), axis=1) for name, array in arrays.items()}


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
    prediction_NC, target_N, label_N = rows.evaluation.output.prediction, rows.evaluation.target, rows.explanation.label
    right, everyone = label_N == target_N, np.ones(len(target_N), np.bool_)
    largest, of_true = prediction_NC.max(axis=1), np.take_along_axis(prediction_NC, target_N[:, None], axis=1)[:, 0]
    if rows.task.kind == "binary":
        event, risk = label_N == 1, prediction_NC[:, 1]
        yield _Rule("Highest risk, right", "the highest risk among rows with the event, predicted as such", right & event, risk)
        yield _Rule("Lowest risk, right", "the lowest risk among rows without it, predicted as such", right & ~event, -risk)
    else:
        yield _Rule("Most certain, right", "the highest probability among right predictions", right, largest)
        yield _Rule("Least certain, right", "the lowest probability among right predictions", right, -largest)
    yield _Rule("Most certain, wrong", "the lowest probability of the true label among wrong predictions", ~right, -of_true)
    disputed = -rows.explanation.agreement - _TIE_BREAK * largest
    yield _Rule("Most disputed", "the fewest experts that alone agree; of equals, the least certain", everyone, disputed)
    lacking = np.any(list(rows.absent.values()), axis=0)
    yield _Rule("Without a modality", "the first row that lacks a whole modality", lacking, np.zeros(len(target_N)))


def _tell(rows: ExplainedRows, row: int, rule: _Rule) -> Sample:
    task, explanation, prediction_C = rows.task, rows.explanation, rows.evaluation.output.prediction[row]
    label = int(explanation.label[row])
    stated = len(task.labels) - 1 if task.kind == "binary" else label
    return Sample(
        title=rule.title,
        rule=rule.text,
        row=row + 1,
        summary=summarise(explanation, row, prediction_C, task=task, experts=rows.experts),
        true_label=task.labels[rows.evaluation.target[row]],
        predicted_label=task.labels[label],
        stated_label=task.labels[stated],
        probability=float(prediction_C[stated]),
        margin=float(explanation.contribution[row].sum()),
        missing=tuple(name for name, lacking in rows.absent.items() if lacking[row]),
        experts=tuple(_tell_experts(explanation, row, stated, rows.experts)),
    )


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
            probability=float(explanation.expert_prediction[row, e, stated]),
            bar=float(contribution_E[e]) / largest,
        )
