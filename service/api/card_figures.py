"""What a manifest's figures say to the model card, in sentences for a person."""

from collections.abc import Iterator

from service.bundle.manifest import Manifest, MetricValue, UncertaintyInfo

_VALIDATION = "validation"  # its rows chose the epoch and fitted the calibration, so figures on them say little
_MAX_NAMED = 40  # inputs of a modality; of more the number is told


def output(manifest: Manifest) -> str:
    """What an answer holds."""
    task = manifest.task
    labels = ", ".join(task.labels)
    first = {
        "binary": f"The calibrated probability of {task.outcome} (label {task.labels[-1]}, against {task.labels[0]}).",
        "multiclass": f"The calibrated probability of each label of {task.outcome}: {labels}.",
        "multilabel": f"For each label of {task.outcome} the calibrated probability that it is present: {labels}.",
        "regression": f"A number: {task.outcome}.",
    }[task.kind]
    bands = ", ".join(f"{band.name} below {band.below:g}" for band in task.risk_bands)
    told = [first, f"Risk bands: {bands}." if bands else "", _promise(manifest.uncertainty, task.kind)]
    rest = "With it: what each expert contributed, and which inputs were missing or unlike those of training."
    return " ".join(text for text in (*told, rest) if text)


def _promise(info: UncertaintyInfo | None, kind: str) -> str:
    if info is None:
        return ""
    what = "an interval that holds the truth" if kind == "regression" else "the labels that cannot be ruled out"
    return f"Beside it {what}, at a coverage of {100 * info.coverage:g} % ({info.guarantee})."


def kind_of_output(manifest: Manifest) -> str:
    """Prediction, classification, recommendation?"""
    if manifest.task.kind == "regression":
        return "A prediction. No recommendation."
    threshold = f" (threshold {manifest.task.threshold:g})" if manifest.task.kind == "binary" else ""
    return f"A prediction, and the classification that follows from it{threshold}. No recommendation."


def inputs(manifest: Manifest) -> str:
    """The names of all input features, so that a reader can look for those of the regulation."""
    told = []
    for modality in manifest.features.modalities:
        names = [feature.name for feature in modality.features]
        named = ", ".join(names) if len(names) <= _MAX_NAMED else f"{len(names)} features"
        told.append(f"{modality.name}: {named}")
    return f"All input features: {'; '.join(told)}."


def validity(manifest: Manifest) -> str | None:
    """Every figure on rows that had no part in training or in choosing the model, and what prediction sets were worth."""
    splits = {split: values for split, values in manifest.metrics.items() if split != _VALIDATION and values}
    told = [f"{_rows(manifest, split)}: {', '.join(_figures(values))}." for split, values in splits.items()]
    return " ".join([*told, *_coverage(manifest)]) or None


def _rows(manifest: Manifest, split: str) -> str:
    counts = manifest.provenance.get("num_rows")
    num_rows = counts.get(split) if isinstance(counts, dict) else None
    return f"{split.capitalize()} data" if num_rows is None else f"{split.capitalize()} data, {num_rows} rows"


def _figures(values: dict[str, MetricValue]) -> Iterator[str]:
    for name, figure in values.items():
        interval = "" if figure.low is None or figure.high is None else f" (95 % {figure.low:.3f} to {figure.high:.3f})"
        yield f"{name} {figure.value:.3f}{interval}"


def _coverage(manifest: Manifest) -> Iterator[str]:
    measured = manifest.uncertainty.measured if manifest.uncertainty is not None else None
    if measured is None:
        return
    by_class = ", ".join(f"{label} {100 * share:.1f} %" for label, share in measured.coverage_by_class.items())
    told = f" ({by_class})" if by_class else ""
    yield f"Prediction sets or intervals held the truth in {100 * measured.coverage:.1f} % of {measured.num_rows} rows{told}."
    yield f"The model abstained in {100 * measured.abstain_rate:.1f} %."


def monitoring(_: Manifest) -> str:
    """What the service itself offers to whoever watches over it, with any model."""
    return "The service exports distributions of its answers (GET /metrics), to compare with held-out rows (GET /explanations)."
