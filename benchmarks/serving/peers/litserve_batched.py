"""LitServe with batching, one worker."""

import os
from typing import Any

import litserve

from benchmarks.serving.peers.common import MAX_BATCH, score, session, stacked


class Api(litserve.LitAPI):
    """The graph behind LitServe's queue."""

    def setup(self, device: str) -> None:
        """Open the graph."""
        del device
        self.graph = session()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """The first record."""
        record: dict[str, Any] = request["instances"][0]
        return record

    def batch(self, inputs: list[dict[str, Any]]) -> Any:
        """Records as arrays."""
        return stacked(inputs)

    def predict(self, x: Any) -> Any:
        """One pass."""
        return score(self.graph, x)

    def unbatch(self, output: Any) -> Any:
        """Already one answer per record."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As the others answer."""
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(os.environ["PORT"]), host="127.0.0.1", generate_client_file=False, log_level="warning")
