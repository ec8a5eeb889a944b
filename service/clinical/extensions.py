"""The FHIR extensions of this service: what of an explanation a RiskAssessment has no element for.

Each is declared once, here. `build` makes an instance of one, `structure_definition` the StructureDefinition that describes it
(docs/fhir, written by `python -m service.clinical docs/fhir` and held against this module by a test).

The canonical URLs are names, not addresses. Their domain is reserved by RFC 2606, so they can never belong to anybody else.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

CANONICAL = "https://i2moe.example/fhir"
Element = dict[str, Any]
ValueType = Literal["string", "code", "decimal", "boolean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """One extension, or a part of one: either a value of `type`, or made of `parts`."""

    name: str
    text: str
    type: ValueType | None = None
    parts: tuple["Extension", ...] = ()
    repeats: bool = False
    required: bool = False

    @property
    def url(self) -> str:
        """The canonical URL of an extension that is no part."""
        return f"{CANONICAL}/StructureDefinition/{self.name}"


def _value(name: str, type_: ValueType, text: str, *, repeats: bool = False, required: bool = False) -> Extension:
    return Extension(name=name, text=text, type=type_, repeats=repeats, required=required)


PREDICTED_LABEL = _value("predicted-label", "string", "The label that the model states; for regression the outcome's name.")
MISSING_INPUT = _value(
    "missing-input", "string", "A feature or modality of the model without a value, such as labs.crea or labs.", repeats=True
)
PREDICTED_VALUE = _value("predicted-value", "decimal", "Regression: the predicted value, in the outcome's unit.")
EXPLANATION = Extension(
    name="explanation",
    text="Which interactions between modalities the predicted label rests on, as a whole.",
    parts=(
        _value("dominant", "string", "The expert with the largest contribution share.", required=True),
        _value("agreement", "decimal", "Share of experts, 0 to 1, that alone would answer the predicted label.", required=True),
    ),
)
EXPERT = Extension(
    name="expert",
    text="One expert's part in the prediction of the predicted label.",
    repeats=True,
    parts=(
        _value("name", "string", "unique:<modality>, synergy or redundancy.", required=True),
        _value("kind", "code", "uniqueness, synergy, redundancy or fusion.", required=True),
        _value("modality", "string", "The modality of a uniqueness expert."),
        _value(
            "weight",
            "decimal",
            "How much of this expert enters the mixture, 0 to 1. A weight is not an importance.",
            required=True,
        ),
        _value(
            "answer",
            "decimal",
            "What this expert alone would answer: a percentage like probabilityDecimal; regression: a value.",
            required=True,
        ),
        _value("logit", "decimal", "Its logits, in the order of the labels.", repeats=True),
        _value(
            "contribution",
            "decimal",
            "What it adds to the uncalibrated margin of the predicted label; negative: speaks against it.",
            required=True,
        ),
        _value("contribution-share", "decimal", "|contribution| over the sum of all |contribution|, 0 to 1.", required=True),
        Extension(
            name="feature",
            text="A feature that weighs much in this contribution.",
            repeats=True,
            parts=(
                _value("name", "string", "labs.crea; one code or word: diagnosis.codes=I50.", required=True),
                _value("attribution", "decimal", "In the unit of the contribution.", required=True),
            ),
        ),
        _value("rest", "decimal", "Sum of the attributions of all features that are not listed."),
        _value("base", "decimal", "The contribution if nothing of the record were known."),
        _value("gap", "decimal", "What the attributions leave untold."),
    ),
)
UNCERTAINTY = Extension(
    name="uncertainty",
    text="How sure the model is of the predicted label: a conformal set or interval, and two flags.",
    parts=(
        _value("set", "string", "A label that cannot be ruled out at this coverage.", repeats=True),
        _value("sure", "string", "Multilabel: a label whose absence can be ruled out.", repeats=True),
        _value("low", "decimal", "Regression: lower end of the interval."),
        _value("high", "decimal", "Regression: upper end of the interval."),
        _value("coverage", "decimal", "How often such sets or intervals hold the truth, 0 to 1.", required=True),
        _value("entropy", "decimal", "Predictive entropy over its maximum, 0 to 1."),
        _value("half-width", "decimal", "Regression: half the interval's width."),
        _value("disagreement", "decimal", "How much of the experts' evidence cancels, 0 to 1."),
        _value("abstain", "boolean", "The model does not commit itself.", required=True),
        _value("experts-disagree", "boolean", "The disagreement is strong."),
    ),
)
ON_ASSESSMENT = (PREDICTED_LABEL, MISSING_INPUT)
ON_PREDICTION = (PREDICTED_VALUE, EXPLANATION, EXPERT, UNCERTAINTY)


def build(extension: Extension, content: object) -> Element:
    """An instance: `content` is the value, or a mapping of part names to values, mappings, or lists of these.

    Parts whose content is None are left out.
    """
    return {"url": extension.url, **_content(extension, content)}


def _content(extension: Extension, content: object) -> Element:
    if extension.type is not None:
        return {f"value{extension.type.capitalize()}": content}
    assert isinstance(content, Mapping)
    return {"extension": list(_parts(extension.parts, content))}


def _parts(parts: Iterable[Extension], content: Mapping[str, Any]) -> Iterator[Element]:
    for part in parts:
        found = content.get(part.name)
        for one in found if isinstance(found, list) else [found]:
            if one is not None:
                yield {"url": part.name, **_content(part, one)}


def structure_definition(extension: Extension, context: str) -> Element:
    """The StructureDefinition (R4) of an extension on elements of `context`."""
    return {
        "resourceType": "StructureDefinition",
        "id": extension.name,
        "url": extension.url,
        "version": "1.0.0",
        "name": "".join(word.capitalize() for word in extension.name.split("-")),
        "status": "active",
        "description": extension.text,
        "fhirVersion": "4.0.1",
        "kind": "complex-type",
        "abstract": False,
        "context": [{"type": "element", "expression": context}],
        "type": "Extension",
        "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Extension",
        "derivation": "constraint",
        "differential": {"element": [_root(extension), *_elements(extension, "Extension", "Extension", extension.url)]},
    }


def _root(extension: Extension) -> Element:
    return {"id": "Extension", "path": "Extension", "short": extension.text, "min": 0, "max": "*" if extension.repeats else "1"}


def _elements(extension: Extension, id_: str, path: str, url: str) -> Iterator[Element]:
    """What constrains the inside of an extension: its parts, its URL, and the type of its value."""
    if extension.type is not None:
        yield {"id": f"{id_}.extension", "path": f"{path}.extension", "max": "0"}
    for part in extension.parts:
        part_id, part_path = f"{id_}.extension:{part.name}", f"{path}.extension"
        counts = {"min": int(part.required), "max": "*" if part.repeats else "1"}
        yield {"id": part_id, "path": part_path, "sliceName": part.name, "short": part.text, **counts}
        yield from _elements(part, part_id, part_path, part.name)
    yield {"id": f"{id_}.url", "path": f"{path}.url", "fixedUri": url}
    value = {"id": f"{id_}.value[x]", "path": f"{path}.value[x]"}
    yield value | ({"max": "0"} if extension.type is None else {"min": 1, "type": [{"code": extension.type}]})
