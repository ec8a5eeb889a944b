"""Headless Chromium that takes nothing for granted: whatever the page complains of fails the test.

Python's playwright drives the machine's own Chromium; nothing is downloaded. Without either, tests skip and say so.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_WATCH_POLICY = """
addEventListener("securitypolicyviolation", (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`));
"""


@dataclass
class Watched:
    """A page with everything that went wrong in it, and every request it made."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    def assert_silent(self, *allowed: str) -> None:
        """No console error or warning, no exception, no violation of the policy, but for those that hold one of `allowed`."""
        assert [text for text in self.complaints if not any(part in text for part in allowed)] == []

    def text(self, selector: str) -> str:
        """The text of an element as it is shown."""
        text: str = self.page.locator(selector).inner_text()
        return text


class Browser:
    """Opens watched pages, each in a profile of its own."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    @contextmanager
    def page(self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[Watched]:
        """A page at `url`. On leaving, it must have been silent; a test that expects complaints takes them out."""
        context = self._chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.add_init_script(_WATCH_POLICY)
        context.set_default_timeout(5_000)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: _note(watched, message.type, message.text))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.on("request", lambda request: watched.requests.append(request))  # noqa: PLW0108 - playwright marks what it is given
        watched.page.goto(url)
        try:
            yield watched
            watched.assert_silent()
        finally:
            context.close()


def _note(watched: Watched, kind: str, text: str) -> None:
    if kind in {"error", "warning"}:
        watched.complaints.append(text)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The machine's Chromium; skips with the reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser on this machine; looked for {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        # Without its own sandbox, since tests may run as root in a container; the pages are this project's own.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
