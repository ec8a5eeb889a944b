"""BentoML's own adaptive batching: a batchable endpoint that takes a list of records."""

from typing import Any

import bentoml

from benchmarks.serving.peers.common import MAX_BATCH, score, session, stacked


@bentoml.service(name="batchable", traffic={"timeout": 30, "max_concurrency": 1024})
class Batchable:
    """The graph behind BentoML's dispatcher."""

    def __init__(self) -> None:
        self.graph = session()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000, route="/predict")
    def predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One pass for a batch."""
        return score(self.graph, stacked(instances))
