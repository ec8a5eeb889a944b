"""Shared by the page's tests: the API's fixtures, and a browser where there is one."""

from collections.abc import Iterator

import pytest

from tests.service.api.conftest import _no_settings, client, tiny_path
from tests.service.page.browser import Browser, open_browser

__all__ = ["_no_settings", "client", "tiny_path"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Of a module: while it is open, its thread has an event loop, and tests elsewhere run their own."""
    with open_browser() as browser:
        yield browser
