"""The authors' released code beside ours: its own classes, imported from a copy that the caller has.

`I2MOE_RELEASED_CODE` names the folder of that copy (the one that holds `src`). What it imports and a CPU cannot have or the
transformer backbone never uses (fastmoe, torchvision, tree) is stubbed; nothing of it is changed or copied here.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from torch import Tensor, nn

from benchmarks.reference import Shape

ENVIRONMENT = "I2MOE_RELEASED_CODE"
_STUBBED = ("fmoe", "fmoe.transformer", "fmoe.layers", "fmoe.functions", "fmoe.gates", "fmoe_cuda", "torchvision", "tree")


class Released(nn.Module):
    """The released I2MoE on the transformer backbone with its patch encoders."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        super().__init__()
        modules = _import(folder)
        num_modalities = len(shape.columns)
        with mock.patch.object(nn.Module, "cuda", lambda module, *_: module):
            fusion = modules["transformer"].Transformer(
                num_modalities, shape.num_patches, shape.hidden_dim, shape.num_labels, shape.num_layers, 2, 4, 1, 2,
                num_heads=shape.num_heads, dropout=shape.dropout, mlp_sparse=False, gate="None",
            )  # fmt: skip
        self.encoders = nn.ModuleList(
            modules["common"].PatchEmbeddings(columns, shape.num_patches, shape.hidden_dim) for columns in shape.columns
        )
        self.mixture = modules["mixture"].InteractionMoE(
            num_modalities=num_modalities,
            fusion_model=fusion,
            fusion_sparse=False,
            hidden_dim=shape.hidden_dim,
            hidden_dim_rw=shape.reweighting_hidden,
            num_layer_rw=shape.reweighting_layers,
        )

    def losses(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the mean interaction loss () of a training step, as the released loop has them."""
        _, _, logits_BC, interaction = self.mixture([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)])
        return logits_BC, sum(interaction) / len(interaction)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The released inference: logits (B, C)."""
        answer: tuple[Any, Any, Tensor] = self.mixture.inference(
            [encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)]
        )
        return answer[2]

    def saved(self, names: Sequence[str]) -> dict[str, Any]:
        """A checkpoint as the released code saves it."""
        encoders = {name: encoder.state_dict() for name, encoder in zip(names, self.encoders, strict=True)}
        return {"ensemble_model": self.mixture.state_dict(), "encoder_dict": encoders}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights of such a checkpoint."""
        self.mixture.load_state_dict(checkpoint["ensemble_model"])
        for encoder, state in zip(self.encoders, checkpoint["encoder_dict"].values(), strict=True):
            encoder.load_state_dict(state)


def released_folder() -> Path | None:
    """Where the caller's copy lies, None where there is none."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named) if named and (Path(named) / "src" / "imoe").is_dir() else None


def _import(folder: Path) -> dict[str, ModuleType]:
    """The released modules, under stubs for what they import in vain."""
    import importlib

    class Stub(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return type(name, (nn.Module,), {})

    stubs = {name: Stub(name) for name in _STUBBED}
    with mock.patch.dict(sys.modules, stubs), mock.patch.object(sys, "path", [str(folder), *sys.path]):
        return {
            "transformer": importlib.import_module("src.common.fusion_models.transformer"),
            "common": importlib.import_module("src.common.modules.common"),
            "mixture": importlib.import_module("src.imoe.InteractionMoE"),
        }
