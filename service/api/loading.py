"""Loading a bundle's model, and looking whether another bundle has taken its place."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from service.api.logs import places
from service.api.settings import Settings
from service.bundle.choose import Found
from service.bundle.errors import BundleError, InferenceError, InvalidRecordError
from service.bundle.predictor import CPU, Predictor
from service.bundle.store import Bundle, open_bundle

logger = logging.getLogger("i2moe.loading")
M = TypeVar("M")


class Looked(NamedTuple, Generic[M]):
    """What became of looking at a bundle."""

    loaded: M | None  # where there is another one than before
    load_s: float
    problem: str | None  # why the bundle that is there is not loaded
    is_news: bool  # whether the problem has not been told before


class Following(Generic[M]):
    """The bundle that is to be there, as often as it is looked at."""

    def __init__(self, *, find: Callable[[], Found], load: Callable[[Path], Awaitable[M]]) -> None:
        """`find` is called in a thread; it and `load` raise `BundleError`, and what they like."""
        self._find, self._load = find, load
        self._held: Found | None = None
        self._refused: Found | None = None
        self._refusal: str | None = None
        self._looking = asyncio.Lock()

    async def look(self) -> Looked[M]:
        """Load the bundle that is there now, if it is another one than the one loaded before.

        One that cannot be loaded is not tried again before it changes.
        """
        async with self._looking:
            try:
                found = await asyncio.to_thread(self._find)
            except BundleError as error:
                return self._refuse(None, str(error))
            except Exception as error:  # no thread to spare, for instance: who looks again and again must go on
                return self._refuse(None, f"the bundle cannot be looked at ({_word(error)})")
            if found in (self._held, self._refused):
                return Looked(None, 0.0, self._refusal if found == self._refused else None, is_news=False)
            started = time.perf_counter()
            try:
                loaded = await self._load(found.path)
            except (BundleError, InferenceError, InvalidRecordError) as error:
                return self._refuse(found, str(error))
            except Exception as error:
                logger.error("unexpected %s", places(error))  # noqa: TRY400 - never the text
                return self._refuse(found, f"the model could not be loaded ({type(error).__name__})")
            self._held, self._refused, self._refusal = found, None, None
            return Looked(loaded, time.perf_counter() - started, None, is_news=False)

    def _refuse(self, found: Found | None, reason: str) -> Looked[M]:
        """News once for each bundle: what is looked at every second must not fill the log."""
        reason = " ".join(reason.split())
        is_news = (found, reason) != (self._refused, self._refusal)
        self._refused, self._refusal = found, reason
        return Looked(None, 0.0, reason, is_news)


def _word(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else type(error).__name__


def load_model(path: Path, settings: Settings) -> tuple[Bundle, Predictor]:
    """Open the bundle, load its graph, see that the example gets its answer, and warm up. Raises the bundle's errors."""
    bundle = open_bundle(path)
    predictor = Predictor(bundle, provider=settings.provider, num_threads=settings.num_threads)
    if settings.require_gpu and predictor.provider == CPU:
        raise InferenceError("I2MOE_REQUIRE_GPU is set, but the graph runs on the CPU")
    predictor.replay_example()
    predictor.tune(settings.max_batch_size)
    warm_up(predictor, settings.max_batch_size)
    return bundle, predictor


def warm_up(predictor: Predictor, max_batch_size: int) -> None:
    """Run batches of 1, 2, 4, ... samples, so that no client pays for memory and kernels being set up."""
    features = predictor.manifest.features
    row = features.encode(predictor.manifest.example.record).arrays
    sizes = {min(2**i, max_batch_size) for i in range(max_batch_size.bit_length() + 1)}
    for size in sorted(sizes):
        predictor.run(features.stack([row] * size))


def told(info: dict[str, str]) -> str:
    """Which model it is, for a log line."""
    return " ".join(f"{name}={value}" for name, value in info.items())


def info_of(bundle: Bundle, predictor: Predictor) -> dict[str, str]:
    """Which model it is, as responses and metrics name it."""
    manifest = bundle.manifest
    return {"name": manifest.name, "version": manifest.version, "sha256": bundle.sha256, "provider": predictor.provider}
