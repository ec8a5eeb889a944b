"""What was checked about a model's explanations, and how to read each figure.

Explanations are the model's own account of itself; these figures compare that account with what the model does when
modalities are hidden from it. They are about the model, not about the world: a faithful explanation of a wrong model is wrong
about the patient. `training.validity` computes them and has the formulas and their sources.

A model with one expert has none (there is nothing to compare), and so has a bundle whose training did not check.
"""

from collections.abc import Iterator
from typing import Literal

from service.bundle.features import Frozen


class Estimate(Frozen):
    """A figure over rows with its 95 % interval; None where no interval can be given."""

    value: float
    low: float | None = None
    high: float | None = None


class OrderFigures(Frozen):
    """Modalities hidden (deletion) or shown (insertion) one after the other, as an explanation ranks them.

    `aopc` is the mean drop of the margin, all modalities against some, over the steps between none and all. Deletion hides
    the most supporting modality first: a larger drop is better. Insertion shows it first: a smaller one is. `random` is the
    exact mean over all orders, `best` takes each row's best order, `same_order` the best that one order for all rows can do: what
    an explanation must beat to say something about a single row. `score` is (aopc - random) / (best - random): 1 no order does
    better, 0 as good as chance, below 0 worse.
    """

    aopc: Estimate
    random: float
    best: float
    same_order: float
    score: Estimate | None
    curve: tuple[float, ...]  # mean margin after 0, 1, ..., n steps
    random_curve: tuple[float, ...]
    best_curve: tuple[float, ...]


class ShapleyAgreement(Frozen):
    """Modalities' part of the contributions against their exact Shapley values."""

    spearman: Estimate | None  # mean over rows of the rank correlation over modalities; of two, 1 or -1
    pearson: Estimate | None  # over all rows and modalities
    top: Estimate  # share of rows whose first modality is the same; chance is 1 over the number of modalities
    sign: Estimate  # share of rows and modalities with the same sign


class PairInteraction(Frozen):
    """The Shapley interaction index of two modalities over rows: above 0 they say more together, below 0 they overlap."""

    modalities: tuple[str, str]
    mean: float
    mean_absolute: float


class InteractionFigures(Frozen):
    """Interaction experts against what modalities say together beyond what each says alone.

    A row's interaction is the margin of all modalities less the sum of what each adds alone. Evidence that no modality tells
    alone (synergy) makes it larger; evidence that all n tell (redundancy) is counted n times in the sum and makes it smaller, by
    n - 1 times itself. So an explanation expects it to be synergy - (n - 1) x redundancy. Correlations are of ranks, over
    rows; 0 says that the expert's contribution does not follow the model's interactions.
    """

    share: float | None  # sum of squared interactions over that of squared margins (counted from nothing shown); 0: additive
    mean: float
    synergy: Estimate | None  # its contribution with the interaction
    redundancy: Estimate | None  # its contribution with the interaction's negative
    expected: Estimate | None  # synergy - (n - 1) x redundancy with the interaction
    pairs: tuple[PairInteraction, ...]


class RandomisedFigures(Frozen):
    """Contributions against those of the same model with experts and their weights re-initialised.

    The mean over rows of the rank correlation over experts, averaged over random models (interval: over random models). Near
    0, explanations rest on what was learned; near 1, an untrained model would give the same.
    """

    num_models: int
    spearman: Estimate


class ExpertShare(Frozen):
    """An expert's mean contribution share with its 95 % interval."""

    name: str
    share: Estimate


class ResampledFigures(Frozen):
    """How much the dataset-level ranking of experts depends on which rows were there."""

    num_bootstraps: int
    experts: tuple[ExpertShare, ...]
    first: str  # the expert with the largest mean share
    first_stays: float  # share of resamples in which it is first
    order_stays: float  # share of resamples with the same order of all experts


class SeedFigures(Frozen):
    """Trainings that differ in their seed alone, compared on the same test rows, means over pairs of runs."""

    seeds: tuple[int, ...]
    num_rows: int
    spearman_rows: float | None  # rank correlation over experts of a row's contribution shares
    same_dominant: float  # share of rows whose dominant expert is the same
    same_dominant_by_chance: float  # what that would be if each run's dominant experts were dealt out at random
    spearman_mean: float | None  # rank correlation over experts of mean shares


class MatchingFigures(Frozen):
    """How well the experts of a decomposition say the parts of the evidence that they were given, on validation rows."""

    contributions: float  # R2 of all experts' contributions together
    whole: float  # R2 of their sum, the mixture's logits: what is lost here is lost in predictions


class ExplanationValidity(Frozen):
    """All that was checked, over `num_rows` rows of `split`; `notes` say what could not be, and why."""

    split: str
    num_rows: int
    hidden_by: Literal["learned token", "other rows"]  # what stands in for a hidden modality
    objective: Literal["paper", "decomposition"] | None = None  # what experts were trained by; None in older bundles
    matching: MatchingFigures | None = None  # of a decomposition
    deletion: OrderFigures | None = None
    insertion: OrderFigures | None = None
    shapley: ShapleyAgreement | None = None
    interactions: InteractionFigures | None = None
    randomised: RandomisedFigures | None = None
    resampled: ResampledFigures | None = None
    seeds: SeedFigures | None = None
    notes: tuple[str, ...] = ()


def describe_validity(validity: ExplanationValidity | None) -> list[str]:
    """A few lines for a person: how far explanations can be trusted."""
    return [] if validity is None else [f"  explained    {line}" for line in _lines(validity)]


def _lines(validity: ExplanationValidity) -> Iterator[str]:
    if validity.objective == "paper":
        yield "experts trained by the published objective: an expert's name is an aim, not a finding"
    if validity.matching:
        parts, whole = validity.matching.contributions, validity.matching.whole
        yield f"experts say their parts of the evidence: R2 {parts:.2f}, of their sum {whole:.2f}"
    if validity.deletion and validity.insertion:
        scores = [
            f"{name} {_told(part.score)}" for name, part in (("deletion", validity.deletion), ("insertion", validity.insertion))
        ]
        yield f"modalities by contribution: {', '.join(scores)} (1 best order, 0 chance)"
    if validity.shapley:
        yield f"Shapley values: rank correlation {_told(validity.shapley.spearman)}, first modality {_told(validity.shapley.top)}"
    if validity.interactions:
        found = validity.interactions
        yield f"interactions: synergy {_told(found.synergy)}, redundancy {_told(found.redundancy)} (rank correlation, 0 none)"
    if validity.randomised:
        yield f"random weights: rank correlation {_told(validity.randomised.spearman)} (0 is right)"
    if validity.seeds:
        seeds = validity.seeds
        chance = seeds.same_dominant_by_chance
        yield f"{len(seeds.seeds)} seeds: same dominant expert {seeds.same_dominant:.2f} (chance {chance:.2f})"
    yield from validity.notes


def _told(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    interval = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return f"{round(estimate.value, 2) + 0.0:.2f}{interval}"  # no -0.00
