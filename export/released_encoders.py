"""Encoders of a released checkpoint: which one a modality has, under what options ours computes the same, what array it reads.

Released layouts (Raina-Xin/I2MoE, `src/common/datasets`): GRU for CMU-MOSI, 3D CNN for ADNI's images, Maxout for MM-IMDb, VGG11
for ENRICO, each followed by a patch embedding of its vector; patch embeddings or MLPs for tables. InterpretCC runs have one token
per modality and so no patches: an encoder ends in its own vector or in one Linear, and either is our projection with one patch.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.errors import ExportError
from export.released_config import Sizes
from export.released_keys import State, encoder_key, encoder_kind

Axes = tuple[int | str, ...]  # of the array an encoder reads: a size, or the name of one that weights do not tell

_PROJECTION = "patches.projection"
_POOLED = 2 * 3 * 4  # cells along an axis that the 3D CNN's three pools make one


@dataclass(frozen=True, slots=True)
class ReleasedEncoder:
    """One modality's encoder, in our terms."""

    options: dict[str, Any]  # as a recipe's [model.encoders] has them, `kind` included
    sizes: Sizes  # of the one array it reads
    weights: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Kind:
    options: Callable[[State], dict[str, Any]]
    axes: Callable[[State], Axes]


def _mlp_options(weights: State) -> dict[str, Any]:
    layers = [key for key in weights if re.fullmatch(r"network\.\d+\.weight", key)]
    return {"num_layers": len(layers), "hidden": weights["network.0.weight"].shape[0], "raw": True}


def _maxout_options(weights: State) -> dict[str, Any]:
    hidden = [weights["op2.0.weight"].shape[0], weights["op4.0.weight"].shape[0]]
    return {"hidden": hidden, "num_pieces": weights["op1.lin.weight"].shape[0] // max(1, hidden[0]), "raw": True}


_KINDS = {
    "patch": _Kind(lambda _: {"raw": True}, lambda _: ("columns",)),
    "mlp": _Kind(_mlp_options, lambda weights: (weights["network.0.weight"].shape[1],)),
    "gru": _Kind(
        lambda weights: {"hidden": weights["gru.weight_hh_l0"].shape[1], "raw": True, "compat": "released"},
        lambda weights: ("steps", weights["gru.weight_ih_l0"].shape[1]),
    ),
    "cnn3d": _Kind(
        lambda weights: {"channels": [weights[f"conv{i}.weight"].shape[0] for i in (1, 3, 5)], "raw": True},
        lambda _: ("x", "y", "z"),
    ),
    "maxout": _Kind(_maxout_options, lambda weights: (weights["op0.weight"].shape[0],)),
    "cnn2d": _Kind(
        lambda weights: {"architecture": "vgg11", "hidden": weights["classifier.weight"].shape[0], "scaling": "none"},
        lambda weights: (weights["features.0.weight"].shape[1], "height", "width"),
    ),
}


def read_encoder(modality: str, state: State, given: Sizes | None, *, num_patches: int, hidden_dim: int) -> ReleasedEncoder:
    """One modality's released weights in our terms; `given` are the sizes config.json has for its array.

    Raises `ExportError` naming the key that is unknown or absent, or what config.json must say.
    """
    try:
        kind = encoder_kind(state)
        weights = {encoder_key(kind, key): tensor for key, tensor in state.items()}
        options, axes = _KINDS[kind].options(weights), _KINDS[kind].axes(weights)
        projected = _projected(kind, weights, num_patches, hidden_dim)
        sizes = _sizes(kind, projected, axes, given, num_patches)
    except (KeyError, IndexError) as error:
        told = f"expected the weights of a whole released encoder, found none or a misshapen one at {error}"
        raise ExportError(f"encoder {modality}: {told}") from error
    except ExportError as error:
        raise ExportError(f"encoder {modality}: {error}") from error
    return ReleasedEncoder({"kind": kind, **options}, sizes, projected)


def _projected(kind: str, weights: dict[str, Tensor], num_patches: int, hidden_dim: int) -> dict[str, Tensor]:
    """The weights with a projection: the identity where the released encoder's own vector is the token."""
    if kind == "mlp" or f"{_PROJECTION}.weight" in weights:
        return weights
    if num_patches != 1:
        raise ExportError(f"expected 1.projection, since the experts read {num_patches} tokens, found none")
    return weights | {f"{_PROJECTION}.weight": torch.eye(hidden_dim), f"{_PROJECTION}.bias": torch.zeros(hidden_dim)}


def _sizes(kind: str, weights: State, axes: Axes, given: Sizes | None, num_patches: int) -> Sizes:
    """The sizes of the array, from the weights where they tell them and from config.json where they do not."""
    told = tuple(axis for axis in axes if isinstance(axis, int))
    sizes = told if given is None else given
    if len(sizes) != len(axes) or any(isinstance(a, int) and a != size for a, size in zip(axes, sizes, strict=True)):
        expected = axes[0] if len(axes) == 1 else f"[{', '.join(map(str, axes))}]"
        untold = [axis for axis in axes if isinstance(axis, str)]
        reason = f" ({', '.join(untold)}: weights do not tell)" if untold else ""
        raise ExportError(f"expected {expected} under modalities of config.json{reason}, found {_spelled(given)}")
    if (problem := _problem(kind, weights, sizes, num_patches)) is not None:
        raise ExportError(problem)
    return sizes


def _spelled(given: Sizes | None) -> str:
    """Sizes as config.json has them."""
    if given is None:
        return "null"
    return str(given[0] if len(given) == 1 else list(given))


def _problem(kind: str, weights: State, sizes: Sizes, num_patches: int) -> str | None:
    """What the weights say against sizes that they do not tell outright."""
    if kind == "patch":
        width = weights[f"{_PROJECTION}.weight"].shape[1]
        if math.ceil(sizes[0] / num_patches) != width:
            fitting = f"{(width - 1) * num_patches + 1} to {width * num_patches}"
            return f"expected {fitting} columns, that is {num_patches} patches of {width}, found {sizes[0]}"
    if kind == "cnn3d":
        num_cells = weights["fc.weight"].shape[1] // weights["conv6.weight"].shape[0]
        if (found := math.prod(max(1, size // _POOLED) for size in sizes)) != num_cells:
            return f"expected a volume of which {num_cells} cells are left after pooling, found {found} of {list(sizes)}"
    return None
