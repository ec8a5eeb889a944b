"""`python -m training stability RUN OTHER ...`: do trainings that differ in their seed alone explain the same rows alike?

Two trainings may predict alike and still explain differently; where they do, an explanation tells as much of the seed as of
the patient. All runs are compared on the same test rows, towards the labels that RUN predicts, so that a share means the
same in each. Shape suffixes: N rows, E experts.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.bundle.validity import ExplanationValidity, SeedFigures
from training.checkpoint import METRICS_FILE, Checkpoint, load_checkpoint
from training.errors import RunError
from training.evaluation import read_metrics, write_metrics
from training.recipe import Recipe
from training.validity.estimates import Floats, row_spearman
from training.validity.rows_file import ExplainedRows, load_rows

_SPLIT = "test"
_SAME_MODEL = ("seed", "device", "workers", "num_bootstraps")  # [train] values that are not what is trained


def compare_seeds(run: Path, others: Sequence[Path]) -> SeedFigures:
    """Compare the runs and write the figures into RUN/metrics.json, from where export takes them. Raises `RunError`."""
    document = read_metrics(run)
    if "validity" not in document["splits"].get(_SPLIT, {}):
        raise RunError(
            f"{run / METRICS_FILE}: expected validity figures of the test rows, found none (one expert, or not enabled)"
        )
    runs = [run, *others]
    seeds = _seeds(runs, [load_checkpoint(path) for path in runs])
    rows = [load_rows(path) for path in runs]
    _refuse_other_rows(runs, rows)
    figures = seed_figures([part.shares(rows[0].label) for part in rows], seeds)
    _write(figures, document, run)
    return figures


def seed_figures(shares: Sequence[Floats], seeds: Sequence[int]) -> SeedFigures:
    """Means over all pairs of runs, each with the contribution shares (N, E) of the same rows."""
    dominant = [share_NE.argmax(axis=1) for share_NE in shares]
    rates = [np.bincount(first_N, minlength=shares[0].shape[1]) / len(first_N) for first_N in dominant]
    return SeedFigures(
        seeds=tuple(seeds),
        num_rows=len(shares[0]),
        spearman_rows=_over_pairs(shares, row_spearman),
        same_dominant=_over_pairs(dominant, lambda a, b: a == b) or 0.0,
        same_dominant_by_chance=_over_pairs(rates, np.vdot) or 0.0,
        spearman_mean=_over_pairs([share_NE.mean(axis=0, keepdims=True) for share_NE in shares], row_spearman),
    )


def _over_pairs(runs: Sequence[Any], function: Callable[[Any, Any], Any]) -> float | None:
    """The mean over pairs of runs of the mean of what is defined; None where nothing is."""
    found = [np.atleast_1d(function(a, b)).astype(np.float64) for a, b in itertools.combinations(runs, 2)]
    means = [values[np.isfinite(values)].mean() for values in found if np.isfinite(values).any()]
    return float(np.mean(means)) if means else None


def _seeds(runs: Sequence[Path], checkpoints: Sequence[Checkpoint]) -> list[int]:
    """The runs' seeds, all different, of one recipe. Raises `RunError`."""
    seeds = [checkpoint.recipe.train.seed for checkpoint in checkpoints]
    if len(set(seeds)) < len(seeds):
        raise RunError(f"expected runs of different seeds, found {', '.join(map(str, seeds))}")
    first = checkpoints[0]
    for run, other in zip(runs[1:], checkpoints[1:], strict=True):
        if different := _differences(_trained(first.recipe), _trained(other.recipe)):
            raise RunError(f"{run}: expected the recipe of {runs[0]} but for train.seed, found another {', '.join(different)}")
        if other.schema != first.schema:
            raise RunError(f"{run}: expected the feature schema of {runs[0]}, found another: {_remedy()}")
    return seeds


def _trained(recipe: Recipe) -> dict[str, Any]:
    """What makes the model, section by section."""
    wanted = ("data", "model", "objective", "train")
    document = recipe.model_dump(mode="json", include=set(wanted))
    document["train"] = {key: value for key, value in document["train"].items() if key not in _SAME_MODEL}
    return document


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{key}"
        for section, values in expected.items()
        for key, value in values.items()
        if found[section].get(key) != value
    ]


def _refuse_other_rows(runs: Sequence[Path], rows: Sequence[ExplainedRows]) -> None:
    for run, other in zip(runs[1:], rows[1:], strict=True):
        if other.fingerprint != rows[0].fingerprint or other.contribution.shape != rows[0].contribution.shape:
            raise RunError(f"{run}: expected the test rows of {runs[0]}, found others: {_remedy()}")


def _remedy() -> str:
    return "train all runs with one split (--set data.split.seed=0; not with folds)"


def _write(figures: SeedFigures, document: dict[str, Any], run: Path) -> None:
    part = document["splits"][_SPLIT]
    validity = ExplanationValidity.model_validate(part["validity"]).model_copy(update={"seeds": figures})
    part["validity"] = validity.model_dump(mode="json")
    write_metrics(document, run / METRICS_FILE)
