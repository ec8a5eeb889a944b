"""The BentoML service: the only module that knows BentoML. Its routes are `service.api.app`'s.

BentoML's own batching is not used: one bad sample fails its whole batch, its queue is unbounded, and calls between
services lose requests (BentoML issue 5540). Its metrics are off: they grow by a series with every unknown path.
"""

import gc
from typing import Any, cast

import bentoml

from service.api.app import build_app
from service.api.middleware import RequestMiddleware
from service.api.runtime import Runtime
from service.api.settings import read_settings

# BentoML wants these two before the service starts; everything else is read when it does.
_settings, _ = read_settings()
# Our own deadline answers first. Not much larger: BentoML keeps a timer for every request until this time is over.
_BENTOML_TIMEOUT_S = _settings.timeout_s + 5.0

_app = build_app(Runtime.from_environment)


def _runtime() -> Runtime:
    runtime: Runtime = _app.state.runtime
    return runtime


@bentoml.service(
    workers=_settings.workers,
    traffic={"timeout": _BENTOML_TIMEOUT_S},
    metrics={"enabled": False},
    tracing={"excluded_urls": ".*"},  # a third of a request's time; who exports traces sets this in BENTOML_CONFIG
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_app, path="/")
class I2MoEService:
    """Serves one bundle: POST /predict, GET /model, /explanations, /metrics, /docs.json, /livez, /readyz."""

    def __init__(self) -> None:
        """Keep what was imported out of garbage collection: walking all of it again and again held up requests."""
        gc.collect()
        gc.freeze()

    async def __is_ready__(self) -> bool:
        """Whether /readyz answers 200; the middleware adds the reason where it does not."""
        return _runtime().is_ready


# A cast because type checkers do not follow what class decorators return.
cast("bentoml.Service[Any]", I2MoEService).add_asgi_middleware(RequestMiddleware, runtime_of=_runtime)
