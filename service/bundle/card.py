"""The model card: what the people who decide whether to use a model should know of it, in its makers' own words.

Figures do not belong here; they are elsewhere in the manifest, where a program put them. `service.api.source_attributes` tells
both together.
"""

from typing import Annotated

from pydantic import Field

from service.bundle.features import Frozen

NOTICE = "Research use. Not for clinical decisions."  # wherever a score appears
NOT_STATED = "Not stated."  # stands in for a required text where a recipe has no card
NOT_RECORDED = "Not recorded in the checkpoint."  # the same, for a released checkpoint
_UNKNOWN = frozenset({NOT_STATED, NOT_RECORDED})

Stated = Annotated[str, Field(min_length=1)]


class ModelCard(Frozen):
    """A recipe's `[model_card]`. What may be left out is then told as not provided; nothing is made up."""

    intended_use: str
    population: str  # for whom the model is meant
    exclusions: str  # for whom it is not
    limits: str
    data: str
    licence: str

    developer: Stated | None = None
    contact: Stated | None = None
    funding: Stated | None = None  # of the technical development
    intended_users: Stated | None = None
    decision_role: Stated | None = None  # informs, augments or replaces clinical management
    out_of_scope: Stated | None = None  # tasks and situations the model must not be used for

    training_criteria: Stated | None = None  # who is in the training data and who was left out
    demographic_inputs: Stated | None = None  # race, ethnicity, language, sex, age, ... as input features
    representativeness: Stated | None = None  # of the training data, by the same
    relevance: Stated | None = None  # of the training data to where the model is used

    fairness: Stated | None = None  # what was done for it
    bias: Stated | None = None  # how bias is managed
    fairness_measured: Stated | None = None  # on test data of the training data's source

    external_validation: Stated | None = None  # data and setting other than the training data's source
    external_party: Stated | None = None  # who did it
    external_representativeness: Stated | None = None
    external_process: Stated | None = None
    external_validity: Stated | None = None  # figures
    external_fairness: Stated | None = None
    outcome_studies: Stated | None = None  # whether using the model did anybody good

    maintenance: Stated | None = None  # how and how often validity is watched
    local_validity: Stated | None = None  # where the model is used
    fairness_maintenance: Stated | None = None
    local_fairness: Stated | None = None
    update_schedule: Stated | None = None
    correction_schedule: Stated | None = None  # when a risk to validity or fairness is found

    def stated(self, name: str) -> str | None:
        """A text of the card; None where nobody stated it."""
        text: str | None = getattr(self, name)
        return None if text in _UNKNOWN else text


def unstated_card() -> ModelCard:
    """The card of a recipe that has none."""
    required = (name for name, field in ModelCard.model_fields.items() if field.is_required())
    return ModelCard.model_validate(dict.fromkeys(required, NOT_STATED))
