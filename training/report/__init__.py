"""report.html: one self-contained page that says what a run made, how good it is and how its experts behave.

No script, no font, no address outside the page: figures are SVG inside it. It shows figures over rows and a few explained
test rows, told by their position; no record's values and no identifiers.
"""

from pathlib import Path
from typing import Any

import jinja2

from training.checkpoint import Checkpoint
from training.data.dataset import Dataset
from training.evaluation import Evaluation
from training.files import write_text
from training.report.content import Content, build_content
from training.uncertainty.assessment import Assessment

__all__ = ["write_report"]

_TEMPLATE = "report.html.j2"


def write_report(
    checkpoint: Checkpoint,
    dataset: Dataset,
    evaluations: dict[str, Evaluation],
    history: list[dict[str, Any]],
    path: Path,
    *,
    uncertainty: Assessment | None = None,
) -> None:
    """Write the page of a run, whole or not at all.

    `evaluations` holds "validation" and "test", `history` one entry per epoch; without `uncertainty` its section is left out.
    """
    write_text(_render(build_content(checkpoint, dataset, evaluations, history, uncertainty)), path)


def _render(content: Content) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decimal": _decimal, "signed": _signed, "percent": _percent, "count": _count}
    return environment.get_template(_TEMPLATE).render(content=content)


def _decimal(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _count(value: int) -> str:
    return f"{value:,}"
