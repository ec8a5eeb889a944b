"""When a call is tried again: refusals that name a time, and connections that broke, until a deadline."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.client.errors import GivenUpError, NoAnswerError, RateLimitedError, ServiceError, UnavailableError


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How long and how often.

    Before attempt n + 1 a call waits what Retry-After says, or 0 where nothing does, and on top of it a random time of up to
    `base_s * 2 ** (n - 1)`, at most `cap_s`, so that clients that were refused together do not come back together.
    """

    attempts: int = 5
    deadline_s: float = 30.0  # of a call, all attempts and waits together; `Client` may overrun it by one wait for bytes
    base_s: float = 0.1
    cap_s: float = 5.0

    def __post_init__(self) -> None:
        """Raises `ValueError`."""
        if self.attempts < 1 or min(self.deadline_s, self.base_s, self.cap_s) <= 0:
            raise ValueError(f"expected at least one attempt and times above zero, found {self}")


STANDARD = Retries()


class Attempts:
    """The attempts of one call."""

    def __init__(
        self,
        retries: Retries,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Start the call's clock. `draw` answers numbers from [0, 1)."""
        self._retries, self._clock, self._draw = retries, clock, draw
        self._end = clock() + retries.deadline_s
        self._made = 0

    def begin(self) -> float:
        """The seconds that the next attempt may take. Raises `GivenUpError` where none are left."""
        left = self.check()
        self._made += 1
        return left

    def check(self) -> float:
        """The seconds that are left. Raises `GivenUpError` where none are."""
        if (left := self._end - self._clock()) <= 0:
            raise self.given_up()
        return left

    def given_up(self) -> GivenUpError:
        """What a call ends with whose time is over."""
        return GivenUpError(f"no answer within {self._retries.deadline_s:g} s and {self._made} attempts")

    def wait_s(self, error: ServiceError) -> float:
        """The seconds to wait after a failed attempt. Raises `error` where trying again is of no use or too late."""
        least = _least_wait_s(error)
        if least is None or self._made >= self._retries.attempts:
            raise error
        most = min(self._retries.cap_s, self._retries.base_s * 2.0 ** (self._made - 1))
        wait = least + most * self._draw()
        if self._clock() + wait >= self._end:
            raise error
        return wait


def _least_wait_s(error: ServiceError) -> float | None:
    """None: what was refused once will be refused again, and what took too long has had its time."""
    match error:
        case UnavailableError() | RateLimitedError():
            return error.retry_after_s or 0.0
        case NoAnswerError() if not isinstance(error, GivenUpError):
            return 0.0
    return None
