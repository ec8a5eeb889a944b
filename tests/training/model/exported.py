"""A part of a model as a graph of its own, and that it answers as the part does."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from export.graph import quiet_exporter, to_onnx

FORBIDDEN = {"Bernoulli", "Dropout", "If", "Loop", "Multinomial", "Scan", "SequenceMap"}
BATCH_SIZES = (1, 2, 7)


def assert_same_graph(part: nn.Module, rows: Callable[[int], Tensor]) -> None:
    """No random or control-flow operator, and the answers of torch to 1e-5 for `rows` of every batch size."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    with quiet_exporter():
        graph = to_onnx(part.eval(), (rows(3),), names=(("x",), ("y",)), dynamic_shapes=dynamic)
    operators = {node.op_type for where in (graph.graph, *graph.functions) for node in where.node}
    assert not [op for op in operators if op in FORBIDDEN or op.startswith("Random")]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch_size in BATCH_SIZES:
        x = rows(batch_size)
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, part(x).numpy(), rtol=0, atol=1e-5)
