"""Scoring by a second model what the served one has scored, and comparing: the part of a shadow that runs in its thread."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from service.api.batches import Arrays
from service.api.errors import ApiError
from service.api.logs import places
from service.api.requests import RequestReader, Unread
from service.bundle.comparison import Comparison, Differences, Told
from service.bundle.errors import InvalidRecordError
from service.bundle.features import FloatArray
from service.bundle.manifest import Manifest
from service.bundle.output import Output

logger = logging.getLogger("i2moe.shadow")
T = TypeVar("T")
COMPARED, SKIPPED, INVALID, ERROR = "compared", "skipped", "invalid", "error"


@dataclass(frozen=True, slots=True)
class Offer:
    """The samples of a request that the served model scored, in order."""

    served: Told
    sent: Callable[[], Arrays] | Unread  # the arrays it scored, or the whole request where the other model reads otherwise
    positions: Sequence[int]  # of the samples among the request's records


@dataclass(frozen=True, slots=True)
class Other:
    """The model that is compared with the served one, ready to run."""

    manifest: Manifest
    info: dict[str, str]
    run: Callable[[Arrays], Output]
    reader: RequestReader


class Report(NamedTuple):
    """What became of `size` samples."""

    outcome: str
    size: int
    differences: Differences | None = None  # where they were compared


class _Read(NamedTuple):
    """Samples that the other model can read."""

    served: Told
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Comparing:
    """Scores offers and reports how far the answers lie apart. Raises nothing."""

    other: Other
    comparison: Comparison
    report: Callable[[Report], None]
    rows_at_once: int
    _logged: set[str] = field(default_factory=set)

    def compare(self, offers: Sequence[Offer], is_wanted: Callable[[], bool]) -> None:
        """Score together what was offered, as long as it is wanted."""
        attempts = (self._attempt(partial(self._read, offer), failing=len(offer.positions)) for offer in offers)
        if not (read := [part for part in attempts if part is not None]):
            return
        num_read = sum(len(part.served.prediction) for part in read)
        if (joined := self._attempt(partial(_joined, read), failing=num_read)) is None:
            return
        served, arrays = joined
        for start in range(0, num_read, self.rows_at_once):
            if not is_wanted():
                self.report(Report(SKIPPED, num_read - start))
                return
            self._compare_rows(served, arrays, slice(start, start + self.rows_at_once))

    def _compare_rows(self, served: Told, arrays: Arrays, rows: slice) -> None:
        """All together, and where that fails one by one: a sample never fails its neighbours."""
        positions = range(*rows.indices(len(served.prediction)))
        part = {name: x[rows] for name, x in arrays.items()}
        found = self._attempt(partial(self._differences, served.rows(rows), part), failing=1 if len(positions) == 1 else 0)
        if found is not None:
            self.report(Report(COMPARED, len(positions), found))
        elif len(positions) > 1:
            for row in positions:
                self._compare_rows(served, arrays, slice(row, row + 1))

    def _differences(self, served: Told, arrays: Arrays) -> Differences:
        return self.comparison.differences(served, Told.of(self.other.run(arrays)))

    def _attempt(self, work: Callable[[], T], *, failing: int) -> T | None:
        """What `work` comes to. Where it fails so many samples have, and each kind of failure is told once."""
        try:
            return work()
        except Exception as error:
            if type(error).__name__ not in self._logged:
                self._logged.add(type(error).__name__)
                logger.warning("the shadow failed; more failures of this kind are only counted: %s", places(error))
            if failing:
                self.report(Report(ERROR, failing))
            return None

    def _read(self, offer: Offer) -> _Read | None:
        if not isinstance(offer.sent, Unread):
            return _Read(offer.served, offer.sent())
        encoded = self._encoded(offer.sent, offer.positions)
        good = [position for position, rows in enumerate(encoded) if rows is not None]
        if len(good) < len(encoded):
            self.report(Report(INVALID, len(encoded) - len(good)))
        if not good:
            return None
        return _Read(offer.served.rows(np.array(good)), self.other.reader.schema.stack([x for x in encoded if x is not None]))

    def _encoded(self, sent: Unread, positions: Sequence[int]) -> list[Mapping[str, FloatArray] | None]:
        try:
            records = sent.records(self.other.reader)
        except ApiError:  # the whole request
            return [None] * len(positions)
        return [self._encode(records[position]) for position in positions]

    def _encode(self, record: Mapping[str, object]) -> Mapping[str, FloatArray] | None:
        """None where the other model cannot read the record, or would take a flat vector's columns for what they are not."""
        flat = {name for name, values in record.items() if isinstance(values, list | tuple | np.ndarray)}
        if not flat <= self.comparison.flat_alike:
            return None
        try:
            return self.other.reader.schema.encode(record).arrays
        except InvalidRecordError:
            return None


def _joined(parts: Sequence[_Read]) -> _Read:
    """Those of several requests, one after the other."""
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return _Read(Told.join([part.served for part in parts]), arrays)
