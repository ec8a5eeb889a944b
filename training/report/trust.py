"""How far explanations can be trusted: the rows of the report's table, each with one sentence on how to read it; a figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from service.bundle.validity import Estimate, ExplanationValidity, InteractionFigures, OrderFigures, ShapleyAgreement
from training.report.style import BLUE, GREEN, GREY, Picture, add_legend, dress, new_figure, picture

_SHAPLEY_RANKS = "Mean over rows: does the explanation order a row's modalities as exact Shapley values do?"
_SHAPLEY_AMOUNTS = "Over rows and modalities together: are the amounts in proportion? What all share agrees for free."
_SAME_FIRST = "Share of rows; easy for a model that leans on one modality in every row."
_SHARE = (
    "How much of the margin modalities do not say one by one; 0 is an additive model. It tells of the model, not of its "
    "explanations: where it is small, there is little for synergy and redundancy to tell."
)
_SYNERGY = (
    "Rank correlation over rows of the synergy expert's contribution with what modalities say together beyond each alone. Near "
    "0, that expert is not about synergy, whatever it is called."
)
_REDUNDANCY = (
    "The same for the redundancy expert and what modalities say less together than one by one. Rows with synergy too hide "
    "their overlap, so 1 is out of reach."
)
_RANDOMISED = (
    "Rank correlation with the contributions of models whose experts learned nothing. Near 1, training would not matter."
)
_RESAMPLED = "How often that expert keeps the largest mean share when rows are drawn again. Says nothing about other trainings."


_MATCHING = (
    "R2 on validation rows: how much of what an expert ought to say, by the decomposition of the model's evidence, it says. "
    "What is missing blurs single explanations."
)


@dataclass(frozen=True, slots=True)
class TrustRow:
    """One figure, what it would be for explanations that say nothing and for perfect ones, and how to read it."""

    title: str
    found: Estimate | None  # None where it is undefined
    nothing: str
    perfect: str
    reading: str


def trust_rows(validity: ExplanationValidity, num_modalities: int) -> tuple[TrustRow, ...]:
    """Everything that was checked, one row each."""
    return tuple(_rows(validity, num_modalities))


def _rows(validity: ExplanationValidity, num_modalities: int) -> Iterator[TrustRow]:
    if validity.matching:
        yield TrustRow("experts match their parts", Estimate(value=validity.matching.contributions), "0", "1", _MATCHING)
    if validity.deletion and validity.insertion:
        yield _order_row("deletion score", validity.deletion, "Hiding modalities, the most supporting first, lowers the margin")
        yield _order_row(
            "insertion score", validity.insertion, "Showing modalities, the most supporting first, raises the margin"
        )
    if validity.shapley:
        yield from _shapley_rows(validity.shapley, num_modalities)
    if validity.interactions:
        yield from _interaction_rows(validity.interactions)
    if validity.randomised:
        yield TrustRow("same with random experts", validity.randomised.spearman, "1", "0", _RANDOMISED)
    if validity.resampled:
        stays = Estimate(value=validity.resampled.first_stays)
        yield TrustRow(f"first expert stays ({validity.resampled.first})", stays, "-", "1", _RESAMPLED)


def _order_row(title: str, found: OrderFigures, told: str) -> TrustRow:
    """Where the best one order for all rows lies on the score's scale is told with it: what is to be beaten."""
    room = found.best - found.random
    beaten = f"; the best one order for all rows scores {(found.same_order - found.random) / room:.3f}" if room else ""
    reading = f"{told}: 0 is no better than a random order, 1 is each row's best{beaten}."
    return TrustRow(title, found.score, "0", "1", reading)


def _shapley_rows(found: ShapleyAgreement, num_modalities: int) -> Iterator[TrustRow]:
    yield TrustRow("Shapley values, ranks", found.spearman, "0", "1", _SHAPLEY_RANKS)
    yield TrustRow("Shapley values, amounts", found.pearson, "0", "1", _SHAPLEY_AMOUNTS)
    yield TrustRow("same first modality", found.top, f"{1 / num_modalities:.2f}", "1", _SAME_FIRST)


def _interaction_rows(found: InteractionFigures) -> Iterator[TrustRow]:
    share = None if found.share is None else Estimate(value=found.share)
    yield TrustRow("interaction share", share, "-", "-", _SHARE)
    yield TrustRow("synergy follows interaction", found.synergy, "0", "1", _SYNERGY)
    yield TrustRow("redundancy follows overlap", found.redundancy, "0", "1", _REDUNDANCY)


def draw_orders(deletion: OrderFigures, insertion: OrderFigures) -> Picture:
    """The mean margin while modalities are hidden or shown one after the other."""
    figure = new_figure(3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_curves(left, deletion)
    _draw_curves(right, insertion)
    dress(left, "Deletion: lower is better", x_label="modalities hidden", y_label="mean margin")
    dress(right, "Insertion: higher is better", x_label="modalities shown")
    add_legend(right, "lower right")
    told = "; ".join(f"{name} {_told(part.curve)}" for name, part in (("deletion", deletion), ("insertion", insertion)))
    return picture(figure, f"Mean margin as modalities are hidden and shown in the explanation's order: {told}.")


def _draw_curves(axes: Axes, found: OrderFigures) -> None:
    for curve, color, style, label in (
        (found.curve, BLUE, "solid", "as explained"),
        (found.random_curve, GREY, "dotted", "random order"),
        (found.best_curve, GREEN, "dashed", "each row's best"),
    ):
        axes.plot(range(len(curve)), curve, color=color, linestyle=style, marker=".", label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _told(curve: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in curve)
