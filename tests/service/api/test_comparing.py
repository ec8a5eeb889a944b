"""What the shadow's thread does with what it was offered."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from service.api.comparing import Comparing, Offer, Other, Report
from service.api.errors import InvalidInputError
from service.api.requests import RequestReader, Unread
from service.bundle.comparison import Comparison, Told
from service.bundle.store import open_bundle
from tests.shadow_bundles import other_output, write_other_bundle
from tests.tiny_bundle import tiny_output

EXAMPLE_ROWS = np.array([[4, 140]], np.float32), np.array([[70, 1]], np.float32)


def comparing_of(served: Path, folder: Path, report: Callable[[Report], None]) -> Comparing:
    """The tiny and the other model, two rows at once."""
    manifest = open_bundle(write_other_bundle(folder / "other")).manifest
    other = Other(manifest, {}, lambda arrays: other_output(**arrays), RequestReader(manifest.features, max_instances=1))
    return Comparing(other, Comparison.of(open_bundle(served).manifest, manifest), report, rows_at_once=2)


def test_requests_that_do_not_go_together_fail_alone(tiny_path: Path, tmp_path: Path) -> None:
    """Whatever they are: the thread goes on, and the next request is compared."""
    reports: list[Report] = []
    told, comparing = Told.of(tiny_output(*EXAMPLE_ROWS)), comparing_of(tiny_path, tmp_path, reports.append)
    good, bad = ({"labs": EXAMPLE_ROWS[0][:, :width], "history": EXAMPLE_ROWS[1]} for width in (2, 1))
    comparing.compare([Offer(told, lambda: good, [0]), Offer(told, lambda: bad, [0])], lambda: True)
    comparing.compare([Offer(told, lambda: good, [0])], lambda: True)
    assert [(report.outcome, report.size) for report in reports] == [("error", 2), ("compared", 1)]


def test_what_is_not_wanted_any_more_is_skipped(tiny_path: Path, tmp_path: Path) -> None:
    """Between one part and the next: what has been scored is told."""
    reports: list[Report] = []
    labs, history = (np.repeat(rows, 5, axis=0) for rows in EXAMPLE_ROWS)
    comparing = comparing_of(tiny_path, tmp_path, reports.append)
    wanted = iter((True, False))
    offer = Offer(Told.of(tiny_output(labs, history)), lambda: {"labs": labs, "history": history}, range(5))
    comparing.compare([offer], lambda: next(wanted))
    assert [(report.outcome, report.size) for report in reports] == [("compared", 2), ("skipped", 3)]


def test_a_request_that_the_other_model_refuses_as_a_whole_is_invalid(tiny_path: Path, tmp_path: Path) -> None:
    """All of its samples, and it is no failure."""

    def refuse(_: RequestReader) -> list[object]:
        raise InvalidInputError("not this one", [])

    reports: list[Report] = []
    told = Told.of(tiny_output(*(np.repeat(rows, 3, axis=0) for rows in EXAMPLE_ROWS)))
    comparing_of(tiny_path, tmp_path, reports.append).compare([Offer(told, Unread(refuse, 0), range(3))], lambda: True)
    assert [(report.outcome, report.size) for report in reports] == [("invalid", 3)]
