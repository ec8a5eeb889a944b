"""Keys and tokens of the client: what is sent, when a new token is asked for, and by how many."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.settings import OidcSettings
from service.api.app import build_app
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.client import AsyncClient, Client, ForbiddenError, Retries, UnauthorizedError
from service.client.credentials import Credentials
from tests.service.access.issuer import AUDIENCE, ISSUER, jwks_file, token
from tests.service.api.in_process import running
from tests.tiny_bundle import tiny_example, write_tiny_bundle


class Service:
    """Stands in for a service that trusts one token at a time; remembers what it was shown."""

    def __init__(self, trusted: str) -> None:
        self.trusted, self.shown = trusted, list[str | None]()
        self.statuses: list[int] = []  # to answer with before anything else

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.shown.append(request.headers.get("authorization"))
        earned = 200 if self.shown[-1] == f"Bearer {self.trusted}" else 401
        status = self.statuses.pop(0) if self.statuses else earned
        codes = {401: "UNAUTHORIZED", 403: "FORBIDDEN", 503: "OVERLOADED"}
        body = {"model": {"name": "m", "version": "1", "sha256": "", "provider": ""}, "explanation": None, "validity": None}
        refused = {"error": "no", "code": codes.get(status, ""), "detail": [], "request_id": "r"}
        return httpx.Response(status, json=refused if status != 200 else body | {"reference": {}})


class Giver:
    """Gives t1, t2, t3, ... one after another."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self) -> str:
        self.given += 1
        return f"t{self.given}"

    async def later(self) -> str:
        """The same, after others had their turn."""
        await asyncio.sleep(0)
        return self()


Ask = Callable[..., int]


def in_threads(service: Service, *, calls: int = 1, **options: Any) -> int:
    """Call by way of `Client`, one call after another; answers how many succeeded."""
    with (
        httpx.Client(transport=httpx.MockTransport(service)) as http,
        Client("http://test", http=http, retries=Retries(base_s=0.001), **options) as client,
    ):
        return sum(client.explanations() is not None for _ in range(calls))


def in_tasks(service: Service, *, calls: int = 1, **options: Any) -> int:
    """The same by way of `AsyncClient`, whose tokens come asynchronously."""

    async def main() -> int:
        given = options.get("token")
        token = given.later if isinstance(given, Giver) else given
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(service)) as http,
            AsyncClient("http://test", http=http, retries=Retries(base_s=0.001), **{**options, "token": token}) as client,
        ):
            return sum([await client.explanations() is not None for _ in range(calls)])

    return asyncio.run(main())


both = pytest.mark.parametrize("call", [in_threads, in_tasks])


@both
@pytest.mark.parametrize("options", [{"key": "t1"}, {"token": "t1"}])
def test_a_key_or_a_token_is_shown_as_it_is(call: Ask, options: dict[str, str]) -> None:
    """With every call; one that is refused is final, since there is no other."""
    service = Service("t1")
    assert call(service, calls=2, **options) == 2
    assert service.shown == ["Bearer t1"] * 2
    service.trusted = "t2"
    with pytest.raises(UnauthorizedError):
        call(service, **options)
    assert len(service.shown) == 3


@both
def test_without_either_nothing_is_shown(call: Ask) -> None:
    """A service that asks for nothing is told nothing."""
    service = Service("")
    service.statuses = [200]
    assert call(service) == 1
    assert service.shown == [None]


@both
def test_a_token_is_asked_for_once_and_kept(call: Ask) -> None:
    """Not before the first call, and not again while it is trusted."""
    service, giver = Service("t1"), Giver()
    assert call(service, calls=3, token=giver) == 3
    assert giver.given == 1


@both
def test_a_token_that_is_refused_is_asked_for_anew(call: Ask) -> None:
    """Within the same call, which then succeeds."""
    service, giver = Service("t2"), Giver()
    assert call(service, calls=2, token=giver) == 2
    assert service.shown == ["Bearer t1", "Bearer t2", "Bearer t2"]


@both
def test_a_new_token_is_asked_for_once_per_call(call: Ask) -> None:
    """A service that trusts none of them is not tried for ever, and the next call asks again."""
    service, giver = Service("none"), Giver()
    for expected in (2, 4):
        with pytest.raises(UnauthorizedError):
            call(service, token=giver)
        assert giver.given == len(service.shown) == expected


@both
def test_other_refusals_leave_the_token(call: Ask) -> None:
    """403 is not its age, and an overload is tried again with the same."""
    service, giver = Service("t1"), Giver()
    service.statuses = [503]
    assert call(service, token=giver) == 1
    service.statuses = [403]
    with pytest.raises(ForbiddenError):
        call(service, token="t1")
    assert service.shown == ["Bearer t1"] * 3


@both
def test_what_the_callable_raises_comes_through(call: Ask) -> None:
    """It is the caller's own; nothing was sent."""
    service = Service("t1")

    def fail() -> str:
        raise LookupError("no network")

    with pytest.raises(LookupError, match="no network"):
        call(service, token=fail)
    assert service.shown == []


@both
@pytest.mark.parametrize("bad", ["", "a b", "a\nb", "é", 5, None])
def test_what_is_no_token_is_never_sent(call: Ask, bad: Any) -> None:
    """And the error does not repeat it."""
    service = Service("t1")
    with pytest.raises(ValueError, match="expected a key or token of visible ASCII characters") as refused:
        call(service, token=lambda: bad)
    assert service.shown == []
    assert not bad or str(bad) not in str(refused.value).removeprefix("expected a key or token")


@both
def test_a_key_and_a_token_are_one_too_many(call: Ask) -> None:
    """Which of them would be meant?"""
    with pytest.raises(ValueError, match="found both"):
        call(Service("t1"), key="t1", token="t1")


def test_many_threads_ask_for_one_token() -> None:
    """Also for the next, when all of them find the last refused; nobody forgets the new one on the old one's account."""
    giver = Giver()

    def slow() -> str:
        time.sleep(0.01)
        return giver()

    credentials, start = Credentials(key=None, token=slow), threading.Barrier(16)

    def one() -> None:
        start.wait(10)
        first = credentials.headers()
        assert first == {"Authorization": "Bearer t1"}
        start.wait(10)
        assert credentials.forget(first)
        assert credentials.headers() == {"Authorization": "Bearer t2"}

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(one) for _ in range(16)]:
            done.result()
    assert giver.given == 2


def test_many_tasks_ask_for_one_token() -> None:
    """The same for asyncio."""
    service, giver = Service("t2"), Giver()

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(service)) as http:
            client = AsyncClient("http://test", http=http, token=giver.later)
            await asyncio.gather(*(client.explanations() for _ in range(20)))

    asyncio.run(main())
    assert giver.given == 2


def test_the_service_trusts_what_the_client_shows(tmp_path: Path) -> None:
    """A real token by way of the real application: one that has expired is replaced, one without the scope is not."""
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    oidc = OidcSettings(issuers={ISSUER: str(jwks_file(tmp_path, "RS256"))}, audience=(AUDIENCE,))
    runtime = Runtime(Settings(bundle=bundle, num_threads=1), oidc=oidc)
    tokens = [token(exp=1), token()]

    async def main() -> None:
        async with running(build_app(lambda: runtime)) as http, AsyncClient("http://test", http=http, token=tokens.pop) as client:
            tokens.reverse()
            assert (await client.predict(tiny_example())).label == "dead"
            assert tokens == []
            with pytest.raises(ForbiddenError):
                await client.model()

    asyncio.run(main())
