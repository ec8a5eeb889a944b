"""What every fusion backbone is tested for, and the small sizes it is tested at."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.training.model.exported import assert_same_graph
from training.model.fusion.base import FUSIONS, Fusion

NUM_PATCHES, HIDDEN_DIM, NUM_OUTPUTS = 3, 8, 3


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
    """As a graph it answers like torch, at every batch size."""
    assert_same_graph(_Logits(model), lambda size: tokens(model.num_modalities, size, seed=size))
