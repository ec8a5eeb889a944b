"""A model that answers: its graph, what reads requests for it, and the queues before it."""

import time
from dataclasses import dataclass

from service.api.batcher import Batcher
from service.api.batches import Arrays
from service.api.loading import info_of
from service.api.metrics import Metrics
from service.api.reading import SlowReading
from service.api.requests import RequestReader
from service.api.settings import Settings
from service.bundle.answers import Answers, Explained
from service.bundle.attribution import LABEL_INPUT, Attribution
from service.bundle.manifest import Manifest
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle


@dataclass(frozen=True)
class Model:
    """A bundle in memory, until it is closed."""

    bundle: Bundle
    predictor: Predictor
    reader: RequestReader
    batcher: Batcher[Answers]
    attributions: Batcher[Attribution] | None  # where the bundle can attribute contributions to features
    slow_reading: SlowReading | None = None  # where texts are embedded

    @classmethod
    def made_of(cls, bundle: Bundle, predictor: Predictor, settings: Settings, metrics: Metrics) -> "Model":
        """The model around a graph that is loaded and warm."""
        features = bundle.manifest.features
        return cls(
            bundle,
            predictor,
            RequestReader(features, max_instances=settings.max_instances),
            _answering(predictor, settings, metrics),
            _attributing(predictor, settings, metrics),
            SlowReading(num_threads=settings.num_threads, queue_max=settings.queue_max) if features.embedded else None,
        )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def info(self) -> dict[str, str]:
        """Which model this is, as responses and metrics name it."""
        return info_of(self.bundle, self.predictor)

    async def close(self) -> None:
        """Answer what was accepted, and take nothing more."""
        if self.slow_reading is not None:
            self.slow_reading.close()
        await self.batcher.close()
        if self.attributions is not None:
            await self.attributions.close()


def _answering(predictor: Predictor, settings: Settings, metrics: Metrics) -> Batcher[Answers]:
    """A batcher that scores and explains: both cost the least for many records at once."""
    inference = metrics.inference.labels(predictor.provider)

    def answer(arrays: Arrays, *, in_full: bool) -> Answers:
        started = time.perf_counter()
        output = predictor.run(arrays)
        inference.observe(time.perf_counter() - started)
        explained = Explained.of(output, predictor.manifest)
        metrics.observe_answers(explained)
        return explained.answers(in_full=in_full)

    return Batcher(
        answer,
        max_batch_size=settings.max_batch_size,
        queue_max=settings.queue_max,
        max_wait_s=settings.max_wait_ms / 1000,
        on_batch=lambda batch: metrics.batch_size.observe(batch.num_samples),
        on_depth=metrics.queue_depth.set,
    )


def _attributing(predictor: Predictor, settings: Settings, metrics: Metrics) -> Batcher[Attribution] | None:
    """A batcher of its own, so that predictions do not wait behind attributions, which take many times as long."""
    if (attribution := predictor.manifest.attribution) is None:
        return None
    histogram = metrics.attribution.labels(predictor.provider)

    def run(arrays: Arrays, *, in_full: bool) -> Attribution:
        del in_full  # there is one way to answer
        return predictor.attribute({name: arrays[name] for name in predictor.manifest.features.names}, arrays[LABEL_INPUT])

    return Batcher(
        run,
        max_batch_size=min(settings.max_batch_size, attribution.records_at_once),
        queue_max=settings.queue_max,
        on_batch=lambda batch: histogram.observe(batch.inference_s),
    )
