"""The wire format, field by field. Requests are checked with it; /docs.json is generated from it.

Responses are built as plain dictionaries by `service.bundle.answers`; tests hold them against these models.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from service.bundle.manifest import ExpertKind
from service.bundle.validity import ExplanationValidity

Probability = Annotated[float, Field(ge=0, le=1)]
_RECORD: JsonDict = {"$ref": "#/components/schemas/Record"}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, protected_namespaces=())


def _check_explain(value: object) -> object:
    """One complaint in place of one for each of the values that are possible."""
    if value is True or value is False or value == "features":
        return value
    raise PydanticCustomError("explain_type", 'must be true, false or "features"')


class PredictRequest(_Wire):
    """One or many records. A single record may also be sent as it is, without this envelope."""

    instances: list[Any] = Field(min_length=1, description="The records to score.", json_schema_extra={"items": _RECORD})
    explain: Annotated[StrictBool | Literal["features"], BeforeValidator(_check_explain)] = Field(
        default=True,
        description='Whether predictions carry their explanation. "features": with the features that drove each expert, where '
        "the model can tell; takes many times as long as the prediction.",
    )


class ErrorDetail(_Wire):
    """One thing wrong with one place of a request."""

    loc: list[str | int] = Field(description="Path from the body's root, for instance `instances`, 0, `labs`, `crea`.")
    type: str = Field(description="A stable word for programs.")
    msg: str = Field(description="A sentence for people. Never holds the value that was sent.")


class ErrorResponse(_Wire):
    """Every answer that is not a success has this shape."""

    error: str = Field(description="One sentence.")
    code: str = Field(description="A stable word for programs, for instance INVALID_INPUT.")
    detail: list[ErrorDetail] = Field(description="The places that are wrong; empty where no place is.")
    request_id: str = Field(description="To find the request in the service's log.")


class ItemError(_Wire):
    """Why one instance was not answered."""

    code: Literal["INVALID_INPUT", "INFERENCE_FAILED"]
    message: str
    detail: list[ErrorDetail]


class FeatureAttribution(_Wire):
    """What one feature adds to one expert's contribution."""

    name: str = Field(description="`labs.crea`; one code or word of a feature: `diagnosis.codes=I50`; an array as a whole.")
    attribution: float = Field(description="In the unit of the contribution; negative: speaks against the predicted label.")


class Expert(_Wire):
    """One expert's part in one prediction."""

    name: str = Field(description='"unique:<modality>", "synergy" or "redundancy".')
    kind: ExpertKind
    modality: str | None = Field(description="The modality of a uniqueness expert.")
    weight: Probability = Field(
        description="How much of this expert's logits enters the mixture; all weights add up to 1. A weight is not an "
        "importance: experts speak on different logit scales."
    )
    probability: float = Field(description="What this expert alone would answer where the prediction says `probability`.")
    logits: list[float] = Field(description="This expert's logits, in the order of the labels.")
    contribution: float = Field(
        description="What this expert adds to the (uncalibrated) margin of the predicted label; negative: speaks against it. "
        "Contributions add up to the margin."
    )
    contribution_share: Probability = Field(description="|contribution| over the sum of all |contribution|.")
    features: list[FeatureAttribution] | None = Field(
        default=None,
        description='Only with `explain: "features"`: the features that weigh most in this contribution, the largest first. '
        "contribution = base + sum of `features` + rest + gap, up to rounding.",
    )
    rest: float | None = Field(default=None, description="With `features`: the sum over all features that are not listed.")
    base: float | None = Field(default=None, description="With `features`: the contribution if nothing of the record were known.")
    gap: float | None = Field(
        default=None, description="With `features`: what the attributions leave untold; large: do not rely on them."
    )


class Explanation(_Wire):
    """Which interactions between modalities a prediction rests on."""

    dominant: str = Field(description="The expert with the largest contribution share.")
    agreement: Probability = Field(description="Share of experts that alone would answer the predicted label.")
    summary: str = Field(description="One sentence for a person.")
    experts: list[Expert]


class Uncertainty(_Wire):
    """How sure the model is of one prediction. Fields that the kind of task does not have are left out."""

    set: list[str] | None = Field(
        default=None,
        description="The labels that cannot be ruled out at this coverage, always with the predicted one. Multilabel: those "
        "whose presence cannot be ruled out.",
    )
    sure: list[str] | None = Field(default=None, description="Multilabel: the labels whose absence can be ruled out.")
    interval: list[float | None] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="Regression: from and to; null where not bounded, because too few rows were held out for this coverage.",
    )
    coverage: float = Field(
        gt=0,
        lt=1,
        description="How often such sets or intervals hold the truth, for every class (multilabel: for every label) on its own. "
        "Guaranteed where GET /model says `uncertainty.guarantee` = exact and records are like the held-out rows.",
    )
    entropy: Probability | None = Field(
        default=None, description="Predictive entropy over its maximum: 0 is certain, 1 knows nothing. Not for regression."
    )
    half_width: float | None = Field(default=None, description="Regression: half the interval's width, in the outcome's unit.")
    disagreement: Probability | None = Field(
        description="How much of the experts' evidence cancels: 1 - |sum of contributions| / sum of |contribution|. 0: all "
        "experts pull one way. Null for a model without experts to compare."
    )
    abstain: bool = Field(
        description="The model does not commit itself: the set holds another label too. Multilabel: the absence of the stated "
        "label cannot be ruled out. Regression: no bounded interval is known."
    )
    experts_disagree: bool | None = Field(
        description="The disagreement is strong: among the highest of held-out rows and more than a half (GET /model: "
        "`uncertainty.disagreement_limit`)."
    )


class Prediction(_Wire):
    """The answer to one record."""

    id: str | int | None = Field(description="The record's `id`, as it was sent.")
    status: Literal["ok"]
    label: str = Field(description="The predicted label; for regression the outcome's name.")
    probability: float = Field(
        description="Binary tasks: the risk, that is the calibrated probability of the event (the last label), whatever the "
        "predicted label is. Other tasks: of the predicted label; regression: the predicted value."
    )
    probabilities: dict[str, float] = Field(description="Calibrated, per label.")
    risk_band: str | None = Field(description="The band the risk falls into, where the model defines bands.")
    uncertainty: Uncertainty | None = Field(default=None, description="Left out where the bundle does not say.")
    explanation: Explanation | None = Field(default=None, description="Left out when `explain` is false.")
    missing: list[str] = Field(description="Features and modalities without a value: `labs.crea`, or `labs` for all of it.")
    warnings: list[str] = Field(description="Remarkable values: outside the range seen in training, unknown categories.")


class FailedPrediction(_Wire):
    """The refusal of one record among others that were answered."""

    id: str | int | None = Field(description="The record's `id`, as it was sent.")
    status: Literal["error"]
    error: ItemError


class ModelInfo(_Wire):
    """Which model answered."""

    name: str
    version: str
    sha256: str = Field(description="Hash of the graph that answered.")
    provider: str = Field(description="ONNX Runtime's execution provider, for instance CUDAExecutionProvider.")


class Timing(_Wire):
    """Where the time went, in milliseconds."""

    queue: float = Field(description="Waiting for the batch before.")
    inference: float = Field(description="Of the batch: in the graph, and being explained.")
    attribution: float | None = Field(
        default=None, description='Only with `explain: "features"`: attributing contributions to features, waiting included.'
    )
    total: float = Field(description="From the first byte of the request to the answer.")
    batch_size: int = Field(description="Samples that went through the graph together with this request, its own included.")


class PredictResponse(_Wire):
    """The answers, in the order of the instances."""

    model: ModelInfo
    request_id: str = Field(description="The request's X-Request-ID where it sent a plain one, else a new one.")
    notice: str = Field(description="What the predictions are not for.")
    predictions: list[Annotated[Prediction | FailedPrediction, Field(discriminator="status")]]
    timing_ms: Timing


class ShadowInfo(_Wire):
    """A second model that scores silently what is served; its answers are seen in the metrics alone."""

    model: ModelInfo | None = Field(description="What is compared with the served model; null: nothing is.")
    share: Probability = Field(description="Of requests.")
    problem: str | None = Field(description="Why the shadow bundle that is there is not compared.")


class ModelResponse(_Wire):
    """What is served: schema, task, experts, figures, model card, example."""

    model: ModelInfo
    created: str
    task: dict[str, Any]
    experts: list[dict[str, Any]]
    features: dict[str, Any] = Field(description="Per modality its features with kind, unit, range and vocabulary.")
    calibration: dict[str, Any]
    metrics: dict[str, Any] = Field(description="Figures per split, with 95 % intervals.")
    uncertainty: dict[str, Any] | None = Field(
        description="How prediction sets or intervals and flags are made, whether coverage is guaranteed, and what was measured."
    )
    attribution: dict[str, Any] | None = Field(
        description='How contributions are attributed to features; null: the model does not answer `explain: "features"`.'
    )
    model_card: dict[str, Any]
    graph: dict[str, Any]
    parity: dict[str, Any]
    provenance: dict[str, Any]
    example: dict[str, Any] = Field(description="A record that can be sent as it is, and the graph's answer to it.")
    shadow: ShadowInfo | None = Field(default=None, description="Null: none is wanted.")


class SourceAttribute(_Wire):
    """What the model card says under one source attribute."""

    citation: str
    title: str = Field(description="The regulation's words.")
    status: Literal["provided", "partly provided", "not provided"]
    text: str | None = Field(description="Null where not provided.")
    asked_of: str | None = Field(description="Who could say what is missing; null where all is provided.")


class SourceAttributeGroup(_Wire):
    """A group of source attributes."""

    citation: str
    title: str
    attributes: dict[str, SourceAttribute]


class ModelCardResponse(_Wire):
    """The model card, by the source attributes of ONC HTI-1, and what else a reader should know."""

    notice: str
    model: ModelInfo
    created: str = Field(description="A day.")
    outcome: str
    licence: str | None
    standard: dict[str, str] = Field(description="Which rule the content follows, and what that does and does not mean.")
    counts: dict[str, int] = Field(description="Number of attributes by status.")
    source_attributes: dict[str, SourceAttributeGroup]
    metrics: dict[str, Any] = Field(description="Figures per split, with 95 % intervals.")
    calibration: dict[str, Any]
    uncertainty: dict[str, Any] | None
    parity: dict[str, Any]
    explanations: list[str] = Field(
        description="What was checked about explanations, in words; GET /explanations has the figures."
    )
    provenance: dict[str, Any]


class ExplanationsResponse(_Wire):
    """How the experts behaved over a whole data set, and how far their explanations can be trusted."""

    model: ModelInfo
    explanation: dict[str, Any] | None = Field(description="Per expert: weight, contribution and share over held-out rows.")
    validity: ExplanationValidity | None = Field(
        description="What was checked about the explanations themselves, and how to read each figure; null: nothing was."
    )
    reference: dict[str, Any] = Field(description="Distributions over held-out rows, to compare the service's metrics with.")


class KeptModel(_Wire):
    """The bundle that answered: the same bundle gives the same answer to the same record."""

    name: str
    version: str
    sha256: str


class KeptOutcome(_Wire):
    """What was told of one prediction afterwards (POST /outcomes)."""

    label: str
    time: datetime | None = Field(description="When it happened, where that was told.")
    received: datetime


class KeptPrediction(_Wire):
    """One prediction as it was answered."""

    time: datetime
    position: int = Field(description="Of the instance in its request, from 0.")
    model: KeptModel
    prediction: dict[str, Any] = Field(
        description="As it was answered, with the experts' weights and contributions whether or not they were asked for. Without "
        "id, warnings and sentence where patients' values are not kept."
    )
    record: dict[str, list[float | None]] | None = Field(description="Flat vectors that were scored, where they are kept.")
    outcomes: list[KeptOutcome] = Field(description="In the order in which they were told; the last one counts.")


class KeptPredictionsResponse(_Wire):
    """What was answered under one request id, the oldest first; of very many the last."""

    request_id: str
    predictions: list[KeptPrediction]
