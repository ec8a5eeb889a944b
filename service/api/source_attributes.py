"""What a bundle says under each of the 31 source attributes of ONC HTI-1, 45 CFR 170.315(b)(11)(iv)(B).

Groups and titles are the regulation's. A text comes from the model card's own words or from figures in the manifest; what
neither holds is told as not provided, with who could say it. Knows nothing of requests; `service.api.model_card` serves it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from service.api import card_figures
from service.bundle.manifest import Manifest

CITATION = "45 CFR 170.315(b)(11)(iv)(B)"

Status = Literal["provided", "partly provided", "not provided"]
Part = Callable[[Manifest], str | None]
_DEMOGRAPHICS = "paragraph (b)(11)(iv)(A)(5)-(13)"  # race, ethnicity, language, sexual orientation, gender identity, sex, ...
_DEVELOPER = "It is for the model's developer to say."
_DEPLOYER = "It is for the organisation that uses the model to measure, on its own patients."


@dataclass(frozen=True, slots=True)
class Attribute:
    """One source attribute: what the regulation calls it, and what a manifest may say to it."""

    key: str
    title: str
    parts: tuple[Part, ...]
    asked_of: str = _DEVELOPER


@dataclass(frozen=True, slots=True)
class Group:
    """A group of source attributes, in the regulation's order."""

    key: str
    title: str
    attributes: tuple[Attribute, ...]


def tell_groups(manifest: Manifest) -> dict[str, Any]:
    """Every group with every attribute: citation, title, status, and its text or who could provide it."""
    return {
        group.key: {
            "citation": f"{CITATION}({number})",
            "title": group.title,
            "attributes": {
                attribute.key: {"citation": f"{CITATION}({number})({numeral})", **_tell(attribute, manifest)}
                for numeral, attribute in zip(_NUMERALS, group.attributes, strict=False)
            },
        }
        for number, group in enumerate(groups(), start=1)
    }


_NUMERALS = ("i", "ii", "iii", "iv", "v")


def _tell(attribute: Attribute, manifest: Manifest) -> dict[str, Any]:
    texts = [part(manifest) for part in attribute.parts]
    told = [text for text in texts if text is not None]
    status: Status = "not provided" if not told else "provided" if len(told) == len(texts) else "partly provided"
    asked_of = None if status == "provided" else attribute.asked_of
    return {"title": attribute.title, "status": status, "text": " ".join(told) or None, "asked_of": asked_of}


def _card(name: str, before: str = "") -> Part:
    """A text of the model card, after a word that says what it is."""

    def stated(manifest: Manifest) -> str | None:
        text = manifest.model_card.stated(name)
        return None if text is None else f"{before}{text}"

    return stated


def groups() -> tuple[Group, ...]:
    """The nine groups, (B)(1) to (B)(9)."""
    return (*_what_it_is(), *_how_it_was_made(), *_what_it_is_worth(), *_what_becomes_of_it())


def _what_it_is() -> tuple[Group, ...]:
    return (
        Group(
            "details_and_output",
            "Details and output of the intervention",
            (
                Attribute(
                    "developer",
                    "Name and contact information for the intervention developer",
                    (_card("developer"), _card("contact", "Contact: ")),
                ),
                Attribute(
                    "funding",
                    "Funding source of the technical implementation for the intervention(s) development",
                    (_card("funding"),),
                ),
                Attribute(
                    "output_value", "Description of value that the intervention produces as an output", (card_figures.output,)
                ),
                Attribute(
                    "output_type",
                    "Whether the intervention output is a prediction, classification, recommendation, evaluation, analysis, or "
                    "other type of output",
                    (card_figures.kind_of_output,),
                ),
            ),
        ),
        Group(
            "purpose",
            "Purpose of the intervention",
            (
                Attribute("intended_use", "Intended use of the intervention", (_card("intended_use"),)),
                Attribute(
                    "intended_population", "Intended patient population(s) for the intervention's use", (_card("population"),)
                ),
                Attribute("intended_users", "Intended user(s)", (_card("intended_users"),)),
                Attribute(
                    "decision_role",
                    "Intended decision-making role for which the intervention was designed to be used/for (e.g., informs, "
                    "augments, replaces clinical management)",
                    (_card("decision_role"),),
                ),
            ),
        ),
        Group(
            "cautioned_use",
            "Cautioned out-of-scope use of the intervention",
            (
                Attribute(
                    "out_of_scope",
                    "Description of tasks, situations, or populations where a user is cautioned against applying the "
                    "intervention",
                    (_card("out_of_scope"), _card("exclusions", "Populations: ")),
                ),
                Attribute(
                    "risks_and_limits",
                    "Known risks, inappropriate settings, inappropriate uses, or known limitations of the intervention",
                    (_card("limits"),),
                ),
            ),
        ),
    )


def _how_it_was_made() -> tuple[Group, ...]:
    return (
        Group(
            "development",
            "Intervention development details and input features",
            (
                Attribute(
                    "training_criteria",
                    "Exclusion and inclusion criteria that influenced the training data set",
                    (_card("training_criteria"), _card("data", "Data: ")),
                ),
                Attribute(
                    "demographic_inputs",
                    f"Use of variables in {_DEMOGRAPHICS} as input features",
                    (_card("demographic_inputs"), card_figures.inputs),
                ),
                Attribute(
                    "representativeness",
                    f"Description of demographic representativeness according to variables in {_DEMOGRAPHICS} including, at a "
                    "minimum, those used as input features in the intervention",
                    (_card("representativeness"),),
                ),
                Attribute(
                    "relevance",
                    "Description of relevance of training data to intended deployed setting",
                    (_card("relevance"),),
                ),
            ),
        ),
        Group(
            "fairness_process",
            "Process used to ensure fairness in development of the intervention",
            (
                Attribute(
                    "fairness_approach",
                    "Description of the approach the intervention developer has taken to ensure that the intervention's output "
                    "is fair",
                    (_card("fairness"),),
                ),
                Attribute("bias_management", "Description of approaches to manage, reduce, or eliminate bias", (_card("bias"),)),
            ),
        ),
    )


def _what_it_is_worth() -> tuple[Group, ...]:
    return (
        Group(
            "external_validation",
            "External validation process",
            (
                Attribute(
                    "external_data",
                    "Description of the data source, clinical setting, or environment where an intervention's validity and "
                    "fairness has been assessed, other than the source of training and testing data",
                    (_card("external_validation"),),
                ),
                Attribute("external_party", "Party that conducted the external testing", (_card("external_party"),)),
                Attribute(
                    "external_representativeness",
                    f"Description of demographic representativeness of external data according to variables in {_DEMOGRAPHICS} "
                    "including, at a minimum, those used as input features in the intervention",
                    (_card("external_representativeness"),),
                ),
                Attribute("external_process", "Description of external validation process", (_card("external_process"),)),
            ),
        ),
        Group(
            "performance",
            "Quantitative measures of performance",
            (
                Attribute(
                    "test_validity",
                    "Validity of intervention in test data derived from the same source as the initial training data",
                    (card_figures.validity,),
                ),
                Attribute(
                    "test_fairness",
                    "Fairness of intervention in test data derived from the same source as the initial training data",
                    (_card("fairness_measured"),),
                ),
                Attribute(
                    "external_validity",
                    "Validity of intervention in data external to or from a different source than the initial training data",
                    (_card("external_validity"),),
                ),
                Attribute(
                    "external_fairness",
                    "Fairness of intervention in data external to or from a different source than the initial training data",
                    (_card("external_fairness"),),
                ),
                Attribute(
                    "outcome_studies",
                    "References to evaluation of use of the intervention on outcomes, including, bibliographic citations or "
                    "hyperlinks to evaluations of how well the intervention reduced morbidity, mortality, length of stay, or "
                    "other outcomes",
                    (_card("outcome_studies"),),
                ),
            ),
        ),
    )


def _what_becomes_of_it() -> tuple[Group, ...]:
    return (
        Group(
            "maintenance",
            "Ongoing maintenance of intervention implementation and use",
            (
                Attribute(
                    "validity_monitoring",
                    "Description of process and frequency by which the intervention's validity is monitored over time",
                    (_card("maintenance"), card_figures.monitoring),
                ),
                Attribute("local_validity", "Validity of intervention in local data", (_card("local_validity"),), _DEPLOYER),
                Attribute(
                    "fairness_monitoring",
                    "Description of the process and frequency by which the intervention's fairness is monitored over time",
                    (_card("fairness_maintenance"),),
                ),
                Attribute("local_fairness", "Fairness of intervention in local data", (_card("local_fairness"),), _DEPLOYER),
            ),
        ),
        Group(
            "updates",
            "Update and continued validation or fairness assessment schedule",
            (
                Attribute(
                    "update_schedule",
                    "Description of process and frequency by which the intervention is updated",
                    (_card("update_schedule"),),
                ),
                Attribute(
                    "correction_schedule",
                    "Description of frequency by which the intervention's performance is corrected when risks related to "
                    "validity and fairness are identified",
                    (_card("correction_schedule"),),
                ),
            ),
        ),
    )
