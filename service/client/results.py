"""Answers, field by field as /docs.json describes them; tests hold these classes against it.

Fields that a newer service adds are ignored. A field that an answer may leave out is None then.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct


class _Wire(Struct, frozen=True, kw_only=True):
    pass


class ErrorDetail(_Wire, frozen=True):
    """One thing wrong with one place of a request."""

    loc: list[str | int]
    type: str
    msg: str


class ErrorResponse(_Wire, frozen=True):
    """What every refusal says."""

    error: str
    code: str
    detail: list[ErrorDetail]
    request_id: str


class ItemError(_Wire, frozen=True):
    """Why one record was not answered."""

    code: str
    message: str
    detail: list[ErrorDetail]


class FeatureAttribution(_Wire, frozen=True):
    """What one feature adds to one expert's contribution."""

    name: str
    attribution: float


class Expert(_Wire, frozen=True):
    """One expert's part in one prediction; docs/explanations.md says how to read it."""

    name: str
    kind: str
    modality: str | None
    weight: float
    probability: float
    logits: list[float]
    contribution: float
    contribution_share: float
    features: list[FeatureAttribution] | None = None
    rest: float | None = None
    base: float | None = None
    gap: float | None = None


class Explanation(_Wire, frozen=True):
    """Which interactions between modalities a prediction rests on."""

    dominant: str
    agreement: float
    summary: str
    experts: list[Expert]


class Uncertainty(_Wire, frozen=True):
    """How sure the model is of one prediction."""

    coverage: float
    disagreement: float | None
    abstain: bool
    experts_disagree: bool | None
    set: list[str] | None = None
    sure: list[str] | None = None
    interval: list[float | None] | None = None
    entropy: float | None = None
    half_width: float | None = None


class Prediction(_Wire, frozen=True, tag_field="status", tag="ok"):
    """The answer to one record. `probability` is the risk for binary tasks, whatever the label is."""

    id: str | int | None
    label: str
    probability: float
    probabilities: dict[str, float]
    risk_band: str | None
    missing: list[str]
    warnings: list[str]
    uncertainty: Uncertainty | None = None
    explanation: Explanation | None = None


class FailedPrediction(_Wire, frozen=True, tag_field="status", tag="error"):
    """The refusal of one record."""

    id: str | int | None
    error: ItemError


class ModelInfo(_Wire, frozen=True):
    """Which model answered."""

    name: str
    version: str
    sha256: str
    provider: str


class Timing(_Wire, frozen=True):
    """Where the time went in the service, in milliseconds."""

    queue: float
    inference: float
    total: float
    batch_size: int
    attribution: float | None = None


class PredictResponse(_Wire, frozen=True):
    """The answers of one request, in the order of its records."""

    model: ModelInfo
    request_id: str
    notice: str
    predictions: list[Prediction | FailedPrediction]
    timing_ms: Timing


class KeptModel(_Wire, frozen=True):
    """The bundle that answered."""

    name: str
    version: str
    sha256: str


class KeptOutcome(_Wire, frozen=True):
    """What was told of one prediction afterwards."""

    label: str
    time: datetime | None
    received: datetime


class KeptPrediction(_Wire, frozen=True):
    """One prediction as it was answered, and what became of it: of its outcomes the last counts."""

    time: datetime
    position: int
    model: KeptModel
    prediction: dict[str, Any]
    record: dict[str, list[float | None]] | None
    outcomes: list[KeptOutcome]


class KeptPredictionsResponse(_Wire, frozen=True):
    """What was answered under one request id."""

    request_id: str
    predictions: list[KeptPrediction]


class OutcomeItem(Struct, frozen=True, omit_defaults=True):
    """What became of the prediction of one instance; `time` with its zone."""

    request_id: str
    label: str
    position: int = 0
    time: datetime | None = None


class OutcomesResponse(_Wire, frozen=True):
    """What became of each outcome that was told, in order: `status` ok, or error with `error`."""

    accepted: int
    outcomes: list[dict[str, Any]]


class ShadowInfo(_Wire, frozen=True):
    """A second model that scores silently what is served."""

    model: ModelInfo | None
    share: float
    problem: str | None


class ModelResponse(_Wire, frozen=True):
    """What is served: schema, task, experts, figures, model card, example."""

    model: ModelInfo
    created: str
    task: dict[str, Any]
    experts: list[dict[str, Any]]
    features: dict[str, Any]
    calibration: dict[str, Any]
    metrics: dict[str, Any]
    uncertainty: dict[str, Any] | None
    attribution: dict[str, Any] | None
    model_card: dict[str, Any]
    graph: dict[str, Any]
    parity: dict[str, Any]
    provenance: dict[str, Any]
    example: dict[str, Any]
    shadow: ShadowInfo | None = None


class ExplanationsResponse(_Wire, frozen=True):
    """How the experts behaved over a whole data set, and how far their explanations can be trusted."""

    model: ModelInfo
    explanation: dict[str, Any] | None
    validity: dict[str, Any] | None
    reference: dict[str, Any]
