"""The service under a web server in a thread of this process: up in a moment, for tests that need a bundle of their own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from service.api.app import build_app
from service.api.middleware import RequestMiddleware
from service.api.runtime import LOADING, Runtime
from service.api.settings import Settings
from tests.serving import START_TIMEOUT_S, free_port


@contextmanager
def serving_here(bundle: Path, **settings: Any) -> Iterator[str]:
    """The address of a service of `bundle`, once its model is loaded or never will be."""
    runtime = Runtime(Settings(bundle=bundle, num_threads=1, **settings))
    app = RequestMiddleware(build_app(lambda: runtime), runtime_of=lambda: runtime)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        give_up = time.monotonic() + START_TIMEOUT_S
        while not server.started or runtime.reason == LOADING:
            assert thread.is_alive() and time.monotonic() < give_up, "the server did not start"  # noqa: PT018
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
