"""Two models on the same records: whether their answers can be compared, and how far they lie apart.

Knows manifests and outputs; nothing of requests, metrics or where the other model runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import DIGITS, Floats, Ints, decide
from service.bundle.features import FloatArray, NumericFeature
from service.bundle.manifest import Manifest, TaskInfo
from service.bundle.output import Output
from service.bundle.schema import FeatureSchema, Modality

_RANGE = frozenset({"minimum", "maximum"})  # at most a reason for a warning
_MEANING = frozenset({"unit", "loinc", "summary", "lookback_hours"})  # what a number is, not which column it fills


class IncomparableError(ValueError):
    """The two models do not predict the same, or do not mean the same by a number."""


class Told(NamedTuple):
    """What is compared of the answers for B records."""

    prediction: FloatArray  # (B, C)
    weight: FloatArray  # (B, E)

    @classmethod
    def of(cls, output: Output) -> "Told":
        """That part of a model's output, as arrays of its own: an output's may be slices of a large batch."""
        return cls(output.prediction.copy(), output.expert_weights.copy())

    def rows(self, rows: slice | Ints) -> "Told":
        """Those of some of the records."""
        return Told(self.prediction[rows], self.weight[rows])

    @classmethod
    def join(cls, parts: Sequence["Told"]) -> "Told":
        """Those of several requests, one after the other."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Differences(NamedTuple):
    """How far the other model's answers for B records lie from the served ones, of `DIGITS` decimals."""

    num_records: int
    risk: list[float]  # (B,), other less served: of the event, else of the served label. Empty for regression
    num_label_changes: int
    weight: dict[str, list[float]]  # expert that both have -> (B,), absolute


@dataclass(frozen=True)
class Comparison:
    """A served and another model that answer the same question."""

    served: Manifest
    other: Manifest

    reads_alike: bool  # whether the other model can be given the very arrays that the served one was, whatever was sent
    flat_alike: frozenset[str]  # modalities whose flat vectors mean the same to both: feature by feature, in one order

    @classmethod
    def of(cls, served: Manifest, other: Manifest) -> "Comparison":
        """Raises `IncomparableError` with what was expected and what was found. Takes its time where features are many."""
        _check_task(served.task, other.task)
        ours, theirs = served.features, other.features
        _check_units(ours, theirs)
        fit = theirs.missing == "learned" or ours.missing == "reject"
        reads_alike = fit and set(ours.names) == set(theirs.names) == _alike(ours, theirs, but=_RANGE)
        return cls(served, other, reads_alike, frozenset(_alike(ours, theirs, but=_RANGE | _MEANING)))

    @cached_property
    def experts(self) -> dict[str, tuple[int, int]]:
        """Experts that both models have, by name, with their positions in each."""
        theirs = {expert.name: position for position, expert in enumerate(self.other.experts)}
        return {e.name: (position, theirs[e.name]) for position, e in enumerate(self.served.experts) if e.name in theirs}

    @cached_property
    def _positions(self) -> NDArray[np.intp]:
        """For each label of the served model its position among the other's."""
        ours, theirs = self.served.task, self.other.task
        if ours.kind in {"binary", "regression"}:  # the event is the last, whatever its absence is called
            return np.arange(len(ours.labels))
        return np.array([theirs.labels.index(label) for label in ours.labels])

    def differences(self, served: Told, other: Told) -> Differences:
        """Compare the answers for the same records, in order.

        Rounded after the subtraction: what is less than the answers tell is nought, since the last bits of an answer depend on
        which others were computed with it.
        """
        ours, theirs = self.served.task, self.other.task
        label = decide(served.prediction, ours)
        other_label = self._positions.argsort()[decide(other.prediction, theirs)]
        weights = {
            name: _rounded(np.abs(_less(other.weight[:, j], served.weight[:, i]))) for name, (i, j) in self.experts.items()
        }
        return Differences(len(label), self._risk(served, other, label), int((label != other_label).sum()), weights)

    def _risk(self, served: Told, other: Told, label: Ints) -> list[float]:
        kind = self.served.task.kind
        if kind == "regression":
            return []
        rows, of = np.arange(len(label)), np.full_like(label, -1) if kind == "binary" else label
        return _rounded(_less(other.prediction[rows, self._positions[of]], served.prediction[rows, of]))


def _less(other: Floats, served: Floats) -> Floats:
    return other.astype(np.float64) - served


def _rounded(values: Floats) -> list[float]:
    plain: list[float] = (values.round(DIGITS) + 0.0).tolist()  # no negative nought
    return plain


def _check_task(ours: TaskInfo, theirs: TaskInfo) -> None:
    if ours.kind != theirs.kind:
        raise IncomparableError(f"expected a {ours.kind} task as the served model's, found a {theirs.kind} task")
    if ours.kind == "binary":
        if ours.labels[-1] != theirs.labels[-1]:
            raise IncomparableError(f"expected the served model's event {ours.labels[-1]!r}, found {theirs.labels[-1]!r}")
    elif set(ours.labels) != set(theirs.labels):
        only = ", ".join(map(repr, sorted(set(ours.labels) ^ set(theirs.labels))))
        raise IncomparableError(f"expected the served model's {len(ours.labels)} labels; only one of the models has {only}")


def _check_units(ours: FeatureSchema, theirs: FeatureSchema) -> None:
    """A number that is sent cannot be in two units."""
    found = {modality.name: modality for modality in theirs.modalities}
    for modality in ours.modalities:
        for name, (feature, _) in modality.by_name.items():
            other, _ = found[modality.name].by_name.get(name, (None, None)) if modality.name in found else (None, None)
            if not isinstance(feature, NumericFeature) or not isinstance(other, NumericFeature):
                continue
            if None not in {feature.unit, other.unit} and feature.unit != other.unit:
                raise IncomparableError(f"expected {modality.name}.{name} in {feature.unit}, found a model of {other.unit}")


def _alike(ours: FeatureSchema, theirs: FeatureSchema, *, but: frozenset[str]) -> set[str]:
    """Names of the modalities whose features are equal in all `but` these fields."""
    found = {modality.name: modality for modality in theirs.modalities}
    return {m.name for m in ours.modalities if m.name in found and _fields(m, but) == _fields(found[m.name], but)}


def _fields(modality: Modality, but: frozenset[str]) -> list[dict[str, object]]:
    return [feature.model_dump(exclude=set(but)) for feature in modality.features]
