"""What every fusion backbone is tested for, and the small sizes it is tested at."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from training.model.fusion.base import FUSIONS, Fusion

NUM_PATCHES, HIDDEN_DIM, NUM_OUTPUTS = 3, 8, 3
OPSET = 20
FORBIDDEN = {"Bernoulli", "Dropout", "If", "Loop", "Multinomial", "Scan", "SequenceMap"}


def fusion(name: str, num_modalities: int, options: Mapping[str, Any] | None = None, **changes: Any) -> Fusion:
    """A small backbone, always the same; `changes` are to the arguments common to all."""
    torch.manual_seed(0)
    arguments = {
        "num_modalities": num_modalities,
        "num_patches": NUM_PATCHES,
        "hidden_dim": HIDDEN_DIM,
        "num_layers": 2,
        "num_heads": 2,
        "num_outputs": NUM_OUTPUTS,
        "dropout": 0.2,
    }
    fusion_class = FUSIONS[name]
    return fusion_class(config=fusion_class.Config(**(options or {})), **(arguments | changes))


def tokens(num_modalities: int, batch_size: int, *, seed: int = 1, hidden_dim: int = HIDDEN_DIM) -> Tensor:
    """Random tokens (B, n, P, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, num_modalities, NUM_PATCHES, hidden_dim, generator=generator)


def num_parameters(module: nn.Module) -> int:
    """Weights of a module, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def assert_every_parameter_learns(model: Fusion) -> None:
    """A training step's loss has a gradient with respect to every parameter, and it is not zero."""
    output = model.train()(tokens(model.num_modalities, 64))
    (output.logits_BC.square().sum() + output.gate_loss).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


@torch.no_grad()
def assert_rows_are_independent(model: Fusion) -> None:
    """Evaluation gives a row the same logits alone, among others, in another order and a second time."""
    model.eval()
    x = tokens(model.num_modalities, 9)
    together = model(x).logits_BC
    torch.testing.assert_close(model(x).logits_BC, together, rtol=0, atol=0)
    torch.testing.assert_close(model(x.flip(0)).logits_BC.flip(0), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([model(row[None]).logits_BC for row in x]), together, rtol=0, atol=1e-6)


class _Logits(nn.Module):
    def __init__(self, model: Fusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits_BC


def assert_exports(model: Fusion) -> None:
    """The ONNX graph holds no random or control-flow operator and answers like torch to 1e-5, at every batch size."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Logits(model.eval()),
            (tokens(model.num_modalities, 3),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    operators = {node.op_type for part in (graph.graph, *graph.functions) for node in part.node}
    assert not [op for op in operators if op in FORBIDDEN or op.startswith("Random")]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch_size in (1, 2, 7):
        x = tokens(model.num_modalities, batch_size, seed=batch_size)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(x).logits_BC.numpy(), rtol=0, atol=1e-5)
