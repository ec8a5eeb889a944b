"""How every figure of the report looks: size, colours, axes, and its way into the page.

Figures are made directly, without pyplot and without touching matplotlib's settings, so drawing a report changes nothing
for the process that asked for it. Colours are those of Okabe and Ito (2008), told apart by colour-blind readers too.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from service.bundle.manifest import ExpertInfo

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK, GREY, PALE = "#222222", "#666666", "#DDDDDD"
CURVE_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_UNIQUENESS_COLORS = (BLUE, GREEN, ORANGE, PURPLE, SKY)
_INTERACTION_COLORS = {"synergy": VERMILLION, "redundancy": BLACK, "fusion": BLACK}
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")

_WIDTH = 9.5  # inches: 912 CSS pixels, the width of the page's column
_TITLE_SIZE, _LABEL_SIZE, _TICK_SIZE = 11, 10, 9


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure in the page."""

    source: str  # a data: address
    alt: str  # what it shows, for readers who do not see it


def expert_colors(experts: Sequence[ExpertInfo]) -> tuple[str, ...]:
    """One colour per expert, the same in every figure and table; those of uniqueness experts repeat after five."""
    unique = iter(_UNIQUENESS_COLORS * (len(experts) // len(_UNIQUENESS_COLORS) + 1))
    return tuple(next(unique) if e.kind == "uniqueness" else _INTERACTION_COLORS[e.kind] for e in experts)


def new_figure(height: float) -> Figure:
    """An empty figure of the page's width; `height` in inches."""
    return Figure(figsize=(_WIDTH, height), layout="constrained")


def dress(axes: Axes, title: str, *, x_label: str = "", y_label: str = "") -> None:
    """Titles, a quiet grid and two spines."""
    axes.set_title(title, fontsize=_TITLE_SIZE, loc="left", color=BLACK)
    axes.set_xlabel(x_label, fontsize=_LABEL_SIZE)
    axes.set_ylabel(y_label, fontsize=_LABEL_SIZE)
    axes.tick_params(labelsize=_TICK_SIZE, color=GREY)
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def add_legend(axes: Axes, place: Literal["best", "lower right", "upper right"] = "best", *, num_columns: int = 1) -> None:
    """A legend of everything labelled."""
    axes.legend(fontsize=_TICK_SIZE, loc=place, ncols=num_columns, framealpha=0.85, edgecolor=PALE)


def plain(text: str) -> str:
    """Text for a figure, in which a dollar sign is a dollar sign and not the start of a formula."""
    return text.replace("$", r"\$")


def picture(figure: Figure, alt: str) -> Picture:
    """The figure as an SVG inside a data: address. As an image of its own, its element names cannot meet another's."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", alt)
