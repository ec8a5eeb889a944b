"""What the report says of uncertainty follows from the figures, whichever way they fall."""

import pytest

from service.bundle.manifest import MetricValue, TaskInfo, UncertaintyInfo, UncertaintyMeasured
from training.report.uncertainty import UncertaintyContent, tell_uncertainty
from training.uncertainty.arbitration import Arbitration, Candidate
from training.uncertainty.assessment import Assessment, Disputed
from training.uncertainty.selective import COVERAGES, Order, Point

BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
MEASURED = UncertaintyMeasured(
    split="test", num_rows=9, coverage=0.91, coverage_by_class={"alive": 0.93}, abstain_rate=0.5, error=0.3
)
INFO = UncertaintyInfo(
    method="class-conditional", coverage=0.9, guarantee="exact", num_rows=40, thresholds=(0.4, None), measured=MEASURED
)


def order(half: float, gain: tuple[float, float, float]) -> Order:
    """An order that leaves an error of `half` on half of the rows."""
    curve = tuple(Point(coverage, 0.3 if coverage > 0.5 else half, None) for coverage in COVERAGES)
    return Order(MetricValue(value=0.3 - gain[0]), MetricValue(value=gain[0], low=gain[1], high=gain[2]), curve)


def told(arbiter: str = "mixture", gain: tuple[float, float, float] = (0, 0, 0), kept: float | None = 0.2) -> UncertaintyContent:
    one = MetricValue(value=0.6, low=0.5, high=0.7)
    found = MetricValue(value=gain[0], low=gain[1], high=gain[2])
    candidates = {"mixture": Candidate(0.6, one, MetricValue(value=0.0)), "majority": Candidate(0.6, one, found)}
    orders = {
        "entropy": order(0.1, (0.2, 0.1, 0.3)),
        "disagreement": order(0.25, (0.01, -0.1, 0.1)),
        "random": order(0.3, (0, 0, 0)),
    }
    disputed = Disputed(4, 6, kept, 0.5, {})
    return tell_uncertainty(Assessment(INFO, orders, Arbitration(50, 60, 0.4, candidates, arbiter), disputed), BINARY)


def test_the_best_order_is_named_and_so_are_those_that_are_none() -> None:
    """By area; an order whose gain may be chance is told so."""
    assert told().verdict == (
        "The best order is by entropy: the error of all rows, 0.300, becomes 0.100 on the half that is kept. "
        "No better than chance, as far as these rows tell: disagreement."
    )
    assert told().picture.alt.endswith(told().verdict)


@pytest.mark.parametrize(
    ("arbiter", "gain", "words"),
    [("mixture", (0.0, 0.0, 0.0), "nobody is right more often than the mixture"),
     ("majority", (0.05, 0.01, 0.09), "helps: accuracy changes by +0.050 (+0.010 to +0.090)"),
     ("majority", (-0.05, -0.09, -0.01), "harms: accuracy changes by -0.050"),
     ("majority", (0.01, -0.03, 0.05), "does not tell a help from chance.")],
)  # fmt: skip
def test_arbitration_is_judged_by_its_interval(arbiter: str, gain: tuple[float, float, float], words: str) -> None:
    """Above zero it helps, below it harms, around it nobody knows; the mixture itself needs no verdict."""
    assert words in told(arbiter, gain).arbitration_verdict


def test_abstention_is_offered_with_its_errors() -> None:
    """Kept and abstained rows of those where experts differ; where all are abstained on, that is said."""
    assert told().abstention_verdict == (
        "Of these rows the model commits itself on 4, 20.0 % of them wrong, and abstains on 6, "
        "of which 50.0 % would have been wrong."
    )
    assert told(kept=None).abstention_verdict == "Of these rows the model abstains on all."


def test_thresholds_that_rule_nothing_out_are_told() -> None:
    """A class without a threshold, and one that no test row has."""
    rows = {row.name: (row.threshold, row.coverage) for row in told().thresholds}
    assert rows == {"all": ("", 0.91), "alive": ("0.400", 0.93), "dead": ("none: too few rows", None)}
