"""What a caller shows with every request: an API key, an access token, or a token that is asked for when one is needed.

A token that was asked for is kept until the service does not trust it any more (401). Then a new one is asked for, once however
many calls find that out together. Who knows when tokens end may give a new one earlier: the callable is free to.
"""

import asyncio
import inspect
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Headers = dict[str, str]
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_Ask = TypeVar("_Ask", bound=Callable[[], object])


class _Held(Generic[_Ask]):
    """What is shown now, and how to get another."""

    def __init__(self, *, key: str | None, token: str | _Ask | None) -> None:
        """At most one of them. Raises `ValueError`."""
        if key is not None and token is not None:
            raise ValueError("expected a key or a token, found both")
        self._ask = None if token is None or isinstance(token, str) else token
        self._shown: Headers | None = None if self._ask is not None else {}
        if isinstance(given := token if key is None else key, str):
            self._shown = _header(given)

    def _forget(self, refused: Headers) -> bool:
        """Whether another token can be asked for in place of one that was refused, or has been already."""
        if self._shown == refused and self._ask is not None:
            self._shown = None
        return self._ask is not None


class Credentials(_Held[Callable[[], str]]):
    """For calls from any number of threads."""

    def __init__(self, *, key: str | None, token: str | Callable[[], str] | None) -> None:
        """Ask for nothing yet."""
        super().__init__(key=key, token=token)
        self._lock = threading.Lock()

    def headers(self) -> Headers:
        """What to send. Raises `ValueError` for a token that cannot be sent, and whatever the callable raises."""
        with self._lock:
            if self._shown is None:
                assert self._ask is not None
                self._shown = _header(self._ask())
            return self._shown

    def forget(self, refused: Headers) -> bool:
        """Whether a call whose headers were refused may be tried again with others."""
        with self._lock:
            return self._forget(refused)


class AsyncCredentials(_Held[Callable[[], str | Awaitable[str]]]):
    """For calls from any number of tasks of one event loop."""

    def __init__(self, *, key: str | None, token: str | Callable[[], str | Awaitable[str]] | None) -> None:
        """Ask for nothing yet."""
        super().__init__(key=key, token=token)
        self._lock = asyncio.Lock()

    async def headers(self) -> Headers:
        """As `Credentials.headers`."""
        async with self._lock:
            if self._shown is None:
                assert self._ask is not None
                told = self._ask()
                self._shown = _header(await told if inspect.isawaitable(told) else told)
            return self._shown

    def forget(self, refused: Headers) -> bool:
        """As `Credentials.forget`."""
        return self._forget(refused)


def _header(shown: object) -> Headers:
    """The text of the error holds nothing of it."""
    if not isinstance(shown, str) or _VISIBLE.fullmatch(shown) is None:
        raise ValueError("expected a key or token of visible ASCII characters without spaces, found something else")
    return {"Authorization": f"Bearer {shown}"}
