"""manifest.json: everything about a bundle that is not weights.

Rules for `FORMAT_VERSION`, a single integer:
- a new field: bump, give it a default, and keep the version before in `SUPPORTED_FORMAT_VERSIONS`. A service refuses keys
  it does not know, because an unknown key may change what a known one means; the number tells it why;
- a field renamed, removed, made required, or given another meaning: bump, and drop the versions before;
- a change of the graph's inputs, outputs or their meaning: bump.
A service opens exactly the versions listed in `SUPPORTED_FORMAT_VERSIONS`.

Version 2 tells how far explanations and predictions may be trusted, and may hold a second graph that attributes contributions
to features. All of it may be absent, as in version 1.
Version 3 tells what features are called elsewhere (LOINC), which of several measurements is meant, may group codes, and may have
texts embedded by an encoder whose two files are in the bundle; its model card may say more.
"""

import math
from datetime import datetime
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from service.bundle.card import ModelCard
from service.bundle.features import Frozen
from service.bundle.output import OUTPUT_NAMES
from service.bundle.schema import FeatureSchema
from service.bundle.validity import ExplanationValidity

FORMAT_VERSION = 3
SUPPORTED_FORMAT_VERSIONS = frozenset({1, 2, 3})

TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]
ExpertKind = Literal["uniqueness", "synergy", "redundancy", "fusion"]  # fusion: a single backbone, no interaction experts


_MAX_RECORDS, _MAX_STATES = 8, 4096  # that an attribution holds in memory at once


class FileInfo(Frozen):
    """A file of the bundle, as it must be found on disk."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class TensorInfo(Frozen):
    """One input or output of the graph; named axes are strings."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[int | str, ...] = Field(min_length=1)


class GraphInfo(Frozen):
    """The ONNX graph's interface."""

    opset: int
    precision: Literal["fp32", "fp16", "int8"]
    target: Literal["cpu", "cuda"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class RiskBand(Frozen):
    """Risks below `below` (and not below the band before) are called `name`."""

    name: str
    below: float = Field(gt=0, le=1)


class TaskInfo(Frozen):
    """What is predicted. `labels` are in logit order; for binary tasks the last one is the event, regression has one."""

    kind: TaskKind
    labels: tuple[str, ...] = Field(min_length=1)
    outcome: str  # for a person: "death within one year"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    risk_bands: tuple[RiskBand, ...] = ()
    training_mean: float | None = None  # regression: the contributions' baseline

    @model_validator(mode="after")
    def _bands_rise_to_one(self) -> "TaskInfo":
        limits = [band.below for band in self.risk_bands]
        if limits and self.kind != "binary":
            raise ValueError(f"risk bands belong to binary tasks, found {self.kind}")
        if limits and (limits != sorted(set(limits)) or limits[-1] != 1.0):
            raise ValueError(f"risk bands must rise and end at 1.0, found {limits}")
        return self

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> "TaskInfo":
        fewest, most = {"binary": (2, 2), "regression": (1, 1), "multilabel": (1, math.inf), "multiclass": (2, math.inf)}[
            self.kind
        ]
        if not fewest <= len(self.labels) <= most or len(set(self.labels)) != len(self.labels):
            wanted = f"{fewest}" if fewest == most else f"{fewest} or more"
            raise ValueError(f"a {self.kind} task has {wanted} distinct labels, found {self.labels}")
        if (self.kind == "regression") != (self.training_mean is not None):
            raise ValueError(
                f"training_mean belongs to regression and is required there, found {self.training_mean} for {self.kind}"
            )
        return self


class ExpertInfo(Frozen):
    """One expert, in graph order: "unique:labs", ..., "synergy", "redundancy"."""

    name: str
    kind: ExpertKind
    modality: str | None = None  # of a uniqueness expert

    @model_validator(mode="after")
    def _modality_fits_the_kind(self) -> "ExpertInfo":
        if (self.kind == "uniqueness") != (self.modality is not None):
            raise ValueError(f"expert {self.name}: a {self.kind} expert with modality {self.modality}")
        return self


class CalibrationInfo(Frozen):
    """prediction = softmax (or sigmoid) of scale * logits + bias, fitted on validation rows; identity for regression."""

    method: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    num_rows: int


class MetricValue(Frozen):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float | None = None
    high: float | None = None


class Spread(Frozen):
    """Mean and quantiles of one figure over the rows of a data set."""

    mean: float
    q05: float
    q25: float
    q50: float
    q75: float
    q95: float


class ExpertSummary(Frozen):
    """How one expert behaved over a data set; a weight is not an importance, a contribution is."""

    name: str
    weight: Spread
    contribution: Spread
    contribution_share: Spread
    weight_by_class: dict[str, float]
    contribution_by_class: dict[str, float]
    dominant_rate: float


class AgreementSummary(Frozen):
    """Shares of rows (they add up to 1) by: do all experts name one label, and is the mixture right? (the paper's Table 3)."""

    agree_correct: float
    agree_wrong: float
    disagree_correct: float
    disagree_wrong: float


class DatasetExplanation(Frozen):
    """The dataset-level interpretation: every expert over all rows of `split`."""

    split: str
    num_rows: int
    experts: tuple[ExpertSummary, ...]
    agreement: AgreementSummary | None = None


class UncertaintyMeasured(Frozen):
    """What sets, intervals and flags were worth on rows that had no part in fitting them."""

    split: str
    num_rows: int
    rows_by_class: dict[str, int] = {}  # by true class; multilabel: that have the label; empty for regression
    coverage: float  # share of rows (multilabel: of rows x labels) whose truth lies in the set or interval
    coverage_by_class: dict[str, float]  # by true class; multilabel: by label; empty for regression
    mean_set_size: float | None = None  # labels in a set; None for regression
    abstain_rate: float
    experts_disagree_rate: float | None = None
    error: float  # over all rows: share wrong (multilabel: mean share of wrong labels), regression: mean absolute error
    error_kept: float | None = None  # over rows that do not abstain; None where there are none
    error_abstained: float | None = None
    aurc: dict[str, MetricValue] = {}  # area under the risk-coverage curve, by what orders the rows; lower is better


class UncertaintyInfo(Frozen):
    """Thresholds of split conformal prediction; `service.bundle.uncertainty` says what is done with them.

    A threshold of None lets everything through: too few rows were held out to rule anything out at this coverage.
    """

    method: Literal["class-conditional", "per label", "absolute residual"]
    coverage: float = Field(gt=0, lt=1)
    guarantee: Literal["exact", "approximate"]  # approximate: the rows also chose the epoch and fitted the calibration
    num_rows: int  # held out for this
    rows_by_class: dict[str, int] = {}  # of these, by true class; multilabel: that have the label; empty for regression
    thresholds: tuple[float | None, ...]  # by label, on 1 - probability; regression: one, the interval's half-width
    thresholds_absent: tuple[float | None, ...] = ()  # multilabel: by label, on the probability, for its absence
    disagreement_quantile: float = Field(default=0.95, gt=0, lt=1)
    disagreement_limit: float | None = None  # that quantile over held-out rows, 0.5 at least; None for a single expert
    measured: UncertaintyMeasured | None = None

    def fits(self, task: TaskInfo) -> bool:
        """Whether method and number of thresholds are those of a task."""
        methods = {"regression": "absolute residual", "multilabel": "per label"}
        absent = len(task.labels) if task.kind == "multilabel" else 0
        found = (self.method, len(self.thresholds), len(self.thresholds_absent))
        return found == (methods.get(task.kind, "class-conditional"), len(task.labels), absent)


class Parity(Frozen):
    """How close the graph is to the trained model, over `cases` compared batches.

    Differences are absolute for numbers up to 1 and shares of larger ones.
    """

    atol: float
    max_abs_diff: float
    cases: int


class Completeness(Frozen):
    """How much of the contributions the attributions of single features leave untold, over `num_rows` compared rows.

    base + sum of attributions + gap = contribution, and change = contribution - base, for each expert of each row.
    """

    mean_gap: float  # of |gap|
    max_gap: float
    mean_change: float  # of |change|
    limit: float  # the share of `mean_change` that `mean_gap` may have
    num_rows: int


class AttributionInfo(Frozen):
    """The second graph, `attribution.onnx`: which features drove each expert's contribution towards one label."""

    method: str
    num_points: int = Field(ge=1)  # states between baseline and record at which the model is asked, of one record
    baseline: str  # in words
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    completeness: Completeness
    parity: Parity

    @property
    def records_at_once(self) -> int:
        """How many records a pass may hold, as each is `num_points` rows and more: a bound on memory."""
        return min(_MAX_RECORDS, max(1, _MAX_STATES // self.num_points))


class Answer(Frozen):
    """The graph's outputs for one record."""

    prediction: tuple[float, ...]
    logits: tuple[float, ...]
    expert_weights: tuple[float, ...]
    expert_logits: tuple[tuple[float, ...], ...]


class Example(Frozen):
    """A real record and the answer the graph must give to it; replayed before a service is ready."""

    record: dict[str, Any]
    answer: Answer


class Manifest(Frozen):
    """The whole of manifest.json."""

    format_version: int
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str
    created: datetime
    files: dict[str, FileInfo]
    graph: GraphInfo
    features: FeatureSchema
    task: TaskInfo
    experts: tuple[ExpertInfo, ...] = Field(min_length=1)
    calibration: CalibrationInfo
    metrics: dict[str, dict[str, MetricValue]] = {}
    explanation: DatasetExplanation | None = None
    explanation_validity: ExplanationValidity | None = None
    uncertainty: UncertaintyInfo | None = None
    model_card: ModelCard
    parity: Parity
    example: Example
    provenance: dict[str, Any] = {}  # versions, recipe, seed, training rows
    attribution: AttributionInfo | None = None
    attribution_left_out: str | None = None  # why there is no second graph although one was asked for

    @model_validator(mode="after")
    def _graph_fits(self) -> "Manifest":
        widths = [(m.name, m.width) for m in self.features.modalities]
        inputs = [(t.name, t.shape[-1]) for t in self.graph.inputs]
        if inputs != widths:
            raise ValueError(f"graph inputs {inputs} differ from the feature schema's {widths}")
        outputs = [t.name for t in self.graph.outputs]
        if not set(outputs).issuperset(OUTPUT_NAMES):
            raise ValueError(f"expected graph outputs {list(OUTPUT_NAMES)}, found {outputs}")
        return self

    @model_validator(mode="after")
    def _calibration_and_experts_fit(self) -> "Manifest":
        num_labels = len(self.task.labels)
        if not num_labels == len(self.calibration.scale) == len(self.calibration.bias):
            found = f"{len(self.calibration.scale)} scales and {len(self.calibration.bias)} biases"
            raise ValueError(f"expected calibration for {num_labels} labels, found {found}")
        names = [expert.name for expert in self.experts]
        if len(set(names)) != len(names):
            raise ValueError(f"expected distinct experts, found {names}")
        if unknown := {e.modality for e in self.experts} - {None, *self.features.names}:
            raise ValueError(f"experts of modalities {unknown}, which are not among {self.features.names}")
        return self

    @model_validator(mode="after")
    def _uncertainty_fits(self) -> "Manifest":
        if self.uncertainty is not None and not self.uncertainty.fits(self.task):
            found = f"{self.uncertainty.method} with {len(self.uncertainty.thresholds)} thresholds"
            raise ValueError(
                f"uncertainty: expected that of a {self.task.kind} task of {len(self.task.labels)} labels, found {found}"
            )
        return self

    @model_validator(mode="after")
    def _example_fits(self) -> "Manifest":
        self.features.check(self.example.record)
        num_labels, num_experts = len(self.task.labels), len(self.experts)
        expected = {
            "prediction": (num_labels,),
            "logits": (num_labels,),
            "expert_weights": (num_experts,),
            "expert_logits": (num_experts, num_labels),
        }
        found = {name: np.shape(getattr(self.example.answer, name)) for name in expected}
        if found != expected:
            raise ValueError(f"expected an example answer of shapes {expected}, found {found}")
        return self
