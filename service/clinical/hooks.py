"""The wire format of CDS Hooks 2.0 (cds-hooks.hl7.org/2.0): requests are checked with it, /docs.json is generated from it.

Responses are built as plain dictionaries by `prefetch` and `cards`; tests hold them against these models. Fields that this
service does not read (fhirServer, fhirAuthorization) may be there: it never calls anybody.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

PATIENT_VIEW, ENCOUNTER_DISCHARGE = "patient-view", "encounter-discharge"
HOOKS = (PATIENT_VIEW, ENCOUNTER_DISCHARGE)
_UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
Uuid = Annotated[str, Field(pattern=_UUID)]
FhirId = Annotated[str, Field(pattern=r"^(Patient/)?[A-Za-z0-9.-]{1,64}$")]
Indicator = Literal["info", "warning", "critical"]
Outcome = Literal["accepted", "overridden"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class HookContext(_Wire):
    """Where in the workflow of which user and patient a hook was triggered."""

    user_id: str = Field(alias="userId", min_length=1, max_length=256, description="For instance Practitioner/abc.")
    patient_id: FhirId = Field(alias="patientId", description="The FHIR id of the patient in context.")
    encounter_id: str | None = Field(
        default=None, alias="encounterId", max_length=256, description="Required by encounter-discharge."
    )

    @property
    def patient(self) -> str:
        """The id without its type."""
        return self.patient_id.removeprefix("Patient/")


class HookRequest(_Wire):
    """POST /cds-services/{id}: a hook was triggered."""

    hook: Literal["patient-view", "encounter-discharge"] = Field(description="The hook that the called service is for.")
    hook_instance: Uuid = Field(alias="hookInstance", description="A UUID of this very call.")
    context: HookContext
    prefetch: dict[str, Any] | None = Field(
        default=None,
        description="What the service's prefetch templates ask for, by key: FHIR resources or Bundles of them. Every resource "
        "is read, whatever its key; nothing is fetched that is not here.",
    )


class Service(_Wire):
    """One service that a client may call."""

    hook: str
    id: str
    title: str
    description: str
    prefetch: dict[str, str] = Field(description="FHIR queries whose answers the service needs.")
    usage_requirements: str | None = Field(default=None, alias="usageRequirements")


class Discovery(_Wire):
    """GET /cds-services: what may be called; empty where no feature of the model can be found in FHIR."""

    services: list[Service]


class Coding(_Wire):
    """A code, as CDS Hooks has it."""

    code: str
    system: str | None = None
    display: str | None = None


class Source(_Wire):
    """Where a card comes from."""

    label: str
    url: str | None = None
    topic: Coding | None = None


class Link(_Wire):
    """Where to read on."""

    label: str
    url: str
    type: Literal["absolute", "smart"]


class Card(_Wire):
    """What a person is shown."""

    uuid: Uuid
    summary: str = Field(max_length=139)
    detail: str | None = Field(default=None, description="GitHub-flavoured Markdown.")
    indicator: Indicator
    source: Source
    links: list[Link] | None = None
    override_reasons: list[Coding] | None = Field(default=None, alias="overrideReasons")
    extension: dict[str, Any] | None = Field(
        default=None, description="`i2moe`: the prediction as POST /predict answers it, for programs."
    )


class Cards(_Wire):
    """The answer to a hook; no cards: nothing can be said."""

    cards: list[Card]


class OverrideReason(_Wire):
    """Why a person did otherwise."""

    reason: Coding | None = None
    user_comment: str | None = Field(default=None, alias="userComment", description="Neither kept nor logged.")


class CardFeedback(_Wire):
    """What came of one card."""

    card: Uuid = Field(description="The card's uuid.")
    outcome: Outcome
    override_reason: OverrideReason | None = Field(default=None, alias="overrideReason")
    outcome_timestamp: AwareDatetime = Field(alias="outcomeTimestamp", description="ISO 8601 with a time zone.")


class FeedbackRequest(_Wire):
    """POST /cds-services/{id}/feedback: what came of cards."""

    feedback: list[CardFeedback] = Field(min_length=1, max_length=100)
