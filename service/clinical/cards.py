"""A prediction as a card of CDS Hooks: one line, a table in Markdown for a person, the whole explanation for a program."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from service.bundle.answers import Prediction
from service.bundle.card import NOTICE
from service.bundle.explanation import headline, percent_words
from service.bundle.manifest import Manifest, TaskInfo
from service.clinical.extensions import CANONICAL
from service.clinical.hooks import Indicator
from service.clinical.record import MappedRecord

MAX_SUMMARY = 139
_MAX_LISTED = 15  # of missing and unusable things each; a card is read in seconds
_REASONS_SYSTEM = f"{CANONICAL}/CodeSystem/override-reasons"
OVERRIDE_REASONS = {
    "known": "Already known or acted upon",
    "data": "The data that the prediction rests on are wrong or too old",
    "population": "The model does not apply to this patient",
    "disagree": "I judge the risk differently",
    "no-consequence": "Nothing would follow from it",
}
EXTENSION = "i2moe"


def build_card(
    prediction: Prediction, mapped: MappedRecord, manifest: Manifest, *, model: dict[str, str], base_url: str | None
) -> Any:
    """The card of one prediction. `model` names what answered, `base_url` is where a person finds the service."""
    task = manifest.task
    topic = {"system": f"{CANONICAL}/CodeSystem/model", "code": manifest.name, "display": task.outcome}
    links = [{"label": "About the model", "url": f"{base_url}/", "type": "absolute"}] if base_url else []
    told = {name: value for name, value in prediction.items() if name not in ("id", "status")}
    return pruned(
        {
            "uuid": str(uuid4()),
            "summary": _summary(prediction, task),
            "detail": _detail(prediction, mapped, task),
            "indicator": indicator(prediction["risk_band"], task),
            "source": {"label": f"{manifest.name} {manifest.version} (I2MoE)", "url": base_url, "topic": topic},
            "links": links,
            "overrideReasons": [
                {"code": code, "system": _REASONS_SYSTEM, "display": display} for code, display in OVERRIDE_REASONS.items()
            ],
            "extension": {
                EXTENSION: {"model": model, **told, "basis": mapped.basis, "remarks": mapped.remarks, "unusable": mapped.unusable}
            },
        }
    )


def pruned(value: Any) -> Any:
    """The same without nulls and without empty texts, lists and objects, which CDS Hooks does not allow in its JSON."""
    if isinstance(value, dict):
        kept = {name: pruned(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if not _is_empty(item)}
    if isinstance(value, list | tuple):
        return [item for item in map(pruned, value) if not _is_empty(item)]
    return value


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def indicator(band: str | None, task: TaskInfo) -> Indicator:
    """How urgent a card is, by the place of its risk band: the lowest is info, the highest critical, between them warning.

    Of two bands the higher is a warning. Without bands a card informs.
    """
    names = [risk_band.name for risk_band in task.risk_bands]
    if band is None or band == names[0]:
        return "info"
    return "critical" if band == names[-1] and len(names) > 2 else "warning"


def _headline(prediction: Prediction, task: TaskInfo) -> str:
    return headline([*prediction["probabilities"].values()], task.labels.index(prediction["label"]), task)


def _summary(prediction: Prediction, task: TaskInfo) -> str:
    """One line; that the model does not commit itself is said in it."""
    unsure = "; the model is not sure" if (prediction.get("uncertainty") or {}).get("abstain") else ""
    told, room = _headline(prediction, task), MAX_SUMMARY - len(unsure)
    return (told if len(told) <= room else f"{told[: room - 3]}...") + unsure


def _detail(prediction: Prediction, mapped: MappedRecord, task: TaskInfo) -> str:
    sections = [
        _escaped(prediction["explanation"]["summary"]),
        _sureness(prediction.get("uncertainty") or {}),
        _experts_table(prediction["explanation"]["experts"], task),
        _listed("Warnings", prediction["warnings"]),
        _listed("Notes on the data", mapped.remarks),
        _listed("Not known", prediction["missing"]),
        _listed("Not used", mapped.unusable),
        f"*{NOTICE}*",
    ]
    return "\n\n".join(section for section in sections if section)


def _sureness(uncertainty: dict[str, Any]) -> str:
    if not uncertainty:
        return ""
    often = f"in {100 * uncertainty['coverage']:g} % of cases"
    if "interval" in uncertainty:
        low, high = uncertainty["interval"]
        return f"The value lies between {low:.3g} and {high:.3g} {often}." if low is not None and high is not None else ""
    if uncertainty["abstain"]:  # the sentence says so already
        return ""
    return f"Remains possible: {_escaped(', '.join(uncertainty['set']) or 'none')}, and nothing else {often}."


def _experts_table(experts: Sequence[dict[str, Any]], task: TaskInfo) -> str:
    """Every expert: what it alone would say, and its part in all evidence, with the direction it pushes."""
    rows = ["| expert | alone | evidence | weight |", "|---|---|---|---|", *(_row(expert, task) for expert in experts)]
    return "\n".join(rows)


def _row(expert: dict[str, Any], task: TaskInfo) -> str:
    alone = f"{expert['probability']:.3g}" if task.kind == "regression" else percent_words(expert["probability"])
    sign = "for" if expert["contribution"] > 0 else "against"
    share = f"{percent_words(expert['contribution_share'])} {sign}" if expert["contribution"] else "none"
    return f"| {_escaped(expert['name'])} | {alone} | {share} | {expert['weight']:.2f} |"


def _listed(title: str, items: Sequence[str]) -> str:
    return "\n".join(_lines(title, items)) if items else ""


def _lines(title: str, items: Sequence[str]) -> Iterator[str]:
    yield f"{title}:\n"
    yield from (f"- {_escaped(item)}" for item in items[:_MAX_LISTED])
    if len(items) > _MAX_LISTED:
        yield f"- and {len(items) - _MAX_LISTED} more"


def _escaped(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in " ".join(text.split()))
