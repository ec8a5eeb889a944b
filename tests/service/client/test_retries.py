"""What is tried again, when, and until when; the clock is the test's."""

import gzip
import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.client import (
    AnswerError,
    BodyTooLargeError,
    Client,
    GivenUpError,
    InternalError,
    NotReadyError,
    RateLimitedError,
    RefusedError,
    Retries,
    TimedOutError,
    UnavailableError,
)
from service.client.calls import model_call
from service.client.errors import NoAnswerError, refusal
from service.client.retries import Attempts

READY = {
    "model": {"name": "m", "version": "1", "sha256": "s", "provider": "p"},
    "explanation": None,
    "validity": None,
    "reference": {},
}


def refused(status: int, code: str, **headers: str) -> httpx.Response:
    """A refusal in the service's shape."""
    body = {"error": "no", "code": code, "detail": [], "request_id": "r"}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def unavailable(after: float | None) -> UnavailableError:
    error = refusal(refused(503, "OVERLOADED"))
    assert isinstance(error, UnavailableError)
    error.retry_after_s = after
    return error


def served(*responses: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client of something that answers `responses` in turn, and what it was asked."""
    asked: list[httpx.Request] = []
    turn: Iterator[httpx.Response | Exception] = iter(responses)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        response = next(turn)
        if isinstance(response, Exception):
            raise response
        return response

    http = httpx.Client(transport=httpx.MockTransport(answer))
    return Client("http://test", key="k", http=http, retries=Retries(attempts=4, base_s=0.001, deadline_s=5)), asked


@pytest.mark.parametrize(
    "first",
    [
        refused(503, "OVERLOADED", retry_after="0"),
        refused(503, "MODEL_NOT_READY"),
        refused(429, "RATE_LIMITED", retry_after="0"),
        httpx.Response(503, text="<html>upstream is gone</html>"),
        httpx.Response(429, json={"error": "Too many requests"}),  # BentoML's own limit
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("server hung up"),
    ],
)
def test_what_passes_is_tried_again_under_the_same_id(first: httpx.Response | Exception) -> None:
    """Refusals for now and broken connections; logs of all attempts can be joined."""
    client, asked = served(first, httpx.Response(200, json=READY))
    assert client.explanations().model.name == "m"
    assert len({request.headers["x-request-id"] for request in asked}) == 1
    assert {request.headers["authorization"] for request in asked} == {"Bearer k"}
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (refused(500, "INFERENCE_FAILED"), InternalError),
        (refused(504, "TIMEOUT"), RefusedError),
        (httpx.ReadTimeout("slow"), GivenUpError),
        (refused(418, "SOMETHING_NEW"), RefusedError),
        (httpx.Response(413, text="<html>nginx</html>"), BodyTooLargeError),
        (httpx.Response(504, text=""), TimedOutError),
        (refused(429, "RATE_LIMITED", retry_after="3600"), RateLimitedError),
    ],
)
def test_what_does_not_pass_is_told_at_once(first: httpx.Response | Exception, kind: type[Exception]) -> None:
    """Faults, what took too long, and waits that the deadline does not leave time for."""
    client, asked = served(first)
    with pytest.raises(kind):
        client.explanations()
    assert len(asked) == 1


def test_each_call_has_an_id_of_its_own() -> None:
    """Or what is kept of one would be taken for another's."""
    client, asked = served(*[httpx.Response(200, json=READY)] * 3)
    for _ in range(3):
        client.explanations()
    assert len({request.headers["x-request-id"] for request in asked}) == 3


def test_no_wait_for_bytes_is_longer_than_what_is_left() -> None:
    """Of the deadline, or of the time-out where that is less."""
    client, asked = served(refused(503, "OVERLOADED"), httpx.Response(200, json=READY))
    client.explanations()
    first, second = (request.extensions["timeout"]["read"] for request in asked)
    assert second < first <= 5
    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=READY, request=request)))
    asked.clear()
    http.event_hooks["request"] = [asked.append]
    Client("http://test", http=http, timeout_s=0.5).explanations()
    assert asked[0].extensions["timeout"]["read"] == 0.5


def test_attempts_end() -> None:
    """With the refusal of the last one."""
    client, asked = served(*[refused(503, "MODEL_NOT_READY")] * 9)
    with pytest.raises(NotReadyError):
        client.explanations()
    assert len(asked) == 4


@settings(deadline=None)
@given(
    after=st.none() | st.floats(0, 20),
    drawn=st.lists(st.floats(0, 1, exclude_max=True), min_size=9, max_size=9),
    took=st.floats(0, 3),
    deadline=st.floats(0.1, 60),
)
def test_a_call_never_outlasts_its_deadline(after: float | None, drawn: list[float], took: float, deadline: float) -> None:
    """Whatever is drawn: waits are at least what the service asked for, and end before the deadline."""
    now, draws = 0.0, iter(drawn)
    attempts = Attempts(Retries(attempts=8, deadline_s=deadline), clock=lambda: now, draw=lambda: next(draws))
    for made in range(1, 9):
        try:
            left = attempts.begin()
        except GivenUpError:
            assert now >= deadline
            return
        assert 0 < left <= deadline
        now += took
        try:
            wait = attempts.wait_s(unavailable(after))
        except UnavailableError:
            return
        assert (after or 0) <= wait <= (after or 0) + min(5, 0.1 * 2 ** (made - 1))
        now += wait
        assert now < deadline
    raise AssertionError("eight attempts were all waited for")


def test_a_broken_connection_waits_longer_each_time() -> None:
    """Twice as long at most, up to the cap."""
    attempts = Attempts(Retries(attempts=9, base_s=1, cap_s=5, deadline_s=1000), clock=lambda: 0.0, draw=lambda: 0.5)
    waits = []
    for _ in range(5):
        attempts.begin()
        waits.append(attempts.wait_s(NoAnswerError()))
    assert waits == [0.5, 1, 2, 2.5, 2.5]


def test_retry_after_may_be_a_date() -> None:
    """As proxies send it; one that has passed means now, one that is no date nothing."""
    told: Callable[[str], float | None] = lambda header: refusal(refused(503, "OVERLOADED", retry_after=header)).retry_after_s  # noqa: E731
    assert told("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert told("soon") is None
    assert (told("Fri, 31 Dec 2100 23:59:59 GMT") or 0) > 1e6


@pytest.mark.parametrize("header", ["Fri, 31 Dec 99999999999 23:59:59 GMT", "9" * 400, "-1"])
def test_a_retry_after_that_is_beyond_reading_is_no_other_error(header: str) -> None:
    """A proxy may send anything; the refusal is told all the same."""
    assert refusal(refused(503, "OVERLOADED", retry_after=header)).retry_after_s in (None, float("inf"))


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    """Each byte comes in time, all of them would not: the clock is looked at between pieces."""
    now = [0.0]

    class Drip(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while now[0] < 20:
                now[0] += 0.1
                yield b" "

    http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Drip())))
    attempts = Attempts(Retries(deadline_s=5), clock=lambda: now[0])
    attempts.begin()
    with Client("http://test", http=http) as client, pytest.raises(GivenUpError, match="within 5 s and 1 attempts"):
        client._ask(model_call(), attempts)
    assert now[0] == pytest.approx(5, abs=0.15)


def test_a_compressed_answer_is_read() -> None:
    """As proxies send them, if they are asked to."""
    packed = gzip.compress(json.dumps(READY).encode())
    client, _ = served(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(packed)))
    assert client.explanations().model.name == "m"


def test_a_body_that_cannot_be_decoded_is_no_answer() -> None:
    """Of the client's own errors like everything else, and not asked for again."""
    client, asked = served(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"zzz")))
    with pytest.raises(AnswerError, match="encoding"):
        client.model()
    assert len(asked) == 1


def test_limits_are_checked() -> None:
    """Nonsense is refused where it is written, with what was found."""
    with pytest.raises(ValueError, match="http://"):
        Client("127.0.0.1:3000")
    for request_id in ("", "é", "two words", "x" * 129):
        with pytest.raises(ValueError, match="request_id of 1 to 128"):
            served()[0].predict({}, request_id=request_id)
    with pytest.raises(ValueError, match="attempts=0"):
        Retries(attempts=0)
    with pytest.raises(ValueError, match="max_instances=0"):
        Client("http://test", max_instances=0)
