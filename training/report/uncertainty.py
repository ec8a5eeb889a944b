"""The report's section on uncertainty: what is said of sets, orders and arbitration, and their figure.

Every sentence follows from the figures; none is known beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes

from service.bundle.manifest import MetricValue, TaskInfo, UncertaintyInfo, UncertaintyMeasured
from training.report.style import (
    BLACK,
    BLUE,
    CURVE_COLORS,
    GREY,
    LINE_STYLES,
    Picture,
    add_legend,
    dress,
    new_figure,
    picture,
    plain,
)
from training.uncertainty.arbitration import MIXTURE, Arbitration
from training.uncertainty.assessment import Assessment, Disputed
from training.uncertainty.selective import RANDOM, Order

_ERRORS = {"regression": "mean absolute error", "multilabel": "mean share of wrong labels"}
_HALF = 5  # of the curve's points, the one at which half of the rows are kept


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """One class, label or the interval."""

    name: str
    num_held_out: int | None  # rows that the threshold comes from, None where the bundle does not tell
    threshold: str
    num_rows: int | None  # of these, on which coverage was measured
    coverage: float | None  # on test rows; None for a class that has none


@dataclass(frozen=True, slots=True)
class UncertaintyContent:
    """What the template reads."""

    info: UncertaintyInfo
    measured: UncertaintyMeasured
    error: str  # what an error is
    thresholds: tuple[ThresholdRow, ...]
    orders: Mapping[str, Order]
    verdict: str
    arbitration: Arbitration | None
    arbitration_verdict: str
    disputed: Disputed | None
    abstention_verdict: str
    picture: Picture


def tell_uncertainty(assessment: Assessment, task: TaskInfo) -> UncertaintyContent:
    """Word and draw."""
    info = assessment.info
    assert info.measured is not None
    error = _ERRORS.get(task.kind, "share of wrong rows")
    arbitration, disputed = assessment.arbitration, assessment.disputed
    return UncertaintyContent(
        info=info,
        measured=info.measured,
        error=error,
        thresholds=_thresholds(info, info.measured, task),
        orders=assessment.orders,
        verdict=_verdict(assessment.orders),
        arbitration=arbitration,
        arbitration_verdict="" if arbitration is None else _arbitration_verdict(arbitration),
        disputed=disputed,
        abstention_verdict="" if disputed is None else _abstention_verdict(disputed),
        picture=_draw(assessment, error),
    )


def _thresholds(info: UncertaintyInfo, measured: UncertaintyMeasured, task: TaskInfo) -> tuple[ThresholdRow, ...]:
    if task.kind == "regression":
        name, limit = "interval: prediction plus and minus", _threshold(info.thresholds[0])
        return (ThresholdRow(name, info.num_rows, limit, measured.num_rows, measured.coverage),)
    held_out, tried, found = info.rows_by_class, measured.rows_by_class, measured.coverage_by_class
    rows = [
        ThresholdRow(name, held_out.get(name), _threshold(limit), tried.get(name), found.get(name))
        for name, limit in zip(task.labels, info.thresholds, strict=True)
    ]
    return (ThresholdRow("all", info.num_rows, "", measured.num_rows, measured.coverage), *rows)


def _threshold(value: float | None) -> str:
    return "none: too few rows" if value is None else f"{value:.3f}"


def _interval(value: MetricValue) -> str:
    return f"{value.value:+.3f}" + ("" if value.low is None else f" ({value.low:+.3f} to {value.high:+.3f})")


def _verdict(orders: Mapping[str, Order]) -> str:
    """Which order sets aside the rows that are wrong, and what half of the rows would then be worth."""
    known = {name: order for name, order in orders.items() if name != RANDOM}
    if not known:
        return "A single output without experts has no order of its own."
    best = min(known, key=lambda name: known[name].aurc.value)
    order, idle = known[best], [name for name, o in known.items() if o.gain.low is None or o.gain.low <= 0]
    told = (
        f"The best order is by {best}: the error of all rows, {order.curve[0].error:.3f}, becomes {order.curve[_HALF].error:.3f} "
    )
    told += "on the half that is kept."
    return told + (f" No better than chance, as far as these rows tell: {', '.join(idle)}." if idle else "")


def _arbitration_verdict(found: Arbitration) -> str:
    gain = _interval(found.candidates[found.arbiter].gain)
    words = {
        "none": "On validation rows nobody is right more often than the mixture: there is nobody else to ask.",
        "helps": f"Asking {found.arbiter}, as validation rows suggest, helps: accuracy changes by {gain}.",
        "harms": f"Asking {found.arbiter}, as validation rows suggest, harms: accuracy changes by {gain}.",
        "unclear": f"Asking {found.arbiter}, as validation rows suggest, changes accuracy by {gain}: "
        "that does not tell a help from chance.",
    }
    return words[found.verdict]


def _abstention_verdict(found: Disputed) -> str:
    if found.error_kept is None or found.error_abstained is None:
        return f"Of these rows the model abstains on {'all' if found.error_kept is None else 'none'}."
    told = f"Of these rows the model commits itself on {found.num_kept}, {100 * found.error_kept:.1f} % of them wrong, and "
    return told + f"abstains on {found.num_abstained}, of which {100 * found.error_abstained:.1f} % would have been wrong."


def _draw(assessment: Assessment, error: str) -> Picture:
    figure = new_figure(4.6)
    arbitration = assessment.arbitration
    panels = figure.subplots(1, 1 if arbitration is None else 2, squeeze=False)[0]
    for number, (name, order) in enumerate(assessment.orders.items()):
        coverages, errors = zip(*((point.coverage, point.error) for point in order.curve), strict=True)
        style = LINE_STYLES[number % len(LINE_STYLES)]
        panels[0].plot(coverages, errors, color=GREY if name == RANDOM else CURVE_COLORS[number], linestyle=style, label=name)
    dress(panels[0], "Error of the rows kept, test rows", x_label="share of rows kept", y_label=error)
    panels[0].set_ylim(bottom=0)
    add_legend(panels[0], "lower right")
    if arbitration is not None:
        _draw_gains(panels[1], arbitration)
    return picture(figure, f"Error over the share of rows kept, by order. {_verdict(assessment.orders)}")


def _draw_gains(axes: Axes, found: Arbitration) -> None:
    others = [name for name in found.candidates if name != MIXTURE]
    for position, name in enumerate(others):
        gain = found.candidates[name].gain
        color = BLUE if name == found.arbiter else BLACK
        if gain.low is not None and gain.high is not None:
            axes.hlines(position, gain.low, gain.high, color=color, linewidth=1.5)
        axes.plot(gain.value, position, marker="o", color=color, markersize=5)
    axes.axvline(0, color=GREY, linestyle="dotted", linewidth=1)
    axes.set_yticks(range(len(others)), [plain(name) for name in others])
    axes.invert_yaxis()
    dress(axes, "Where experts differ: gain over the mixture", x_label="accuracy less the mixture's")
