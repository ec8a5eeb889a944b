"""The encoders of the released code in plain formulas: random weights under their released names, and the vectors they make.

Written from the layout of its checkpoints, with torch's functions and none of this project's modules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, conv3d, max_pool2d, max_pool3d, pad

State = dict[str, Tensor]
_VGG11 = {0: 64, 5: 128, 10: 256, 14: 256, 19: 512, 23: 512, 28: 512, 32: 512}  # position in `features`: channels
_POOLED_AFTER = {0, 5, 14, 23, 32}


def _linear(name: str, num_inputs: int, num_outputs: int) -> State:
    weight = torch.randn(num_outputs, num_inputs) / math.sqrt(num_inputs)
    return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(num_outputs)}


def _convolution(name: str, num_inputs: int, num_outputs: int, num_axes: int) -> State:
    weight = torch.randn(num_outputs, num_inputs, *[3] * num_axes) * math.sqrt(2 / (num_inputs * 3**num_axes))
    return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(num_outputs)}


def _norm(name: str, width: int) -> State:
    values = {"weight": 0.5 + torch.rand(width), "bias": 0.1 * torch.randn(width), "running_mean": 0.1 * torch.randn(width)}
    values |= {"running_var": 1 + torch.rand(width), "num_batches_tracked": torch.tensor(7)}
    return {f"{name}.{key}": value for key, value in values.items()}


def _normed(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, for every channel: axis 1."""
    wide = {
        key: state[f"{name}.{key}"].view(-1, *[1] * (x.dim() - 2)) for key in ("weight", "bias", "running_mean", "running_var")
    }
    return (x - wide["running_mean"]) / (wide["running_var"] + eps).sqrt() * wide["weight"] + wide["bias"]


def gru_state(width: int, hidden: int) -> State:
    """A GRU's weights."""
    shapes = {"weight_ih_l0": (3 * hidden, width), "weight_hh_l0": (3 * hidden, hidden), "bias_ih_l0": (3 * hidden,)}
    return {f"gru.{key}": 0.4 * torch.randn(shape) for key, shape in (shapes | {"bias_hh_l0": (3 * hidden,)}).items()}


def gru(state: State, x_BTF: Tensor) -> Tensor:
    """The state after the last step, padding or not."""
    h = torch.zeros(len(x_BTF), state["gru.weight_hh_l0"].shape[1])
    for x in x_BTF.unbind(1):
        of_x = (x @ state["gru.weight_ih_l0"].T + state["gru.bias_ih_l0"]).chunk(3, dim=1)
        of_h = (h @ state["gru.weight_hh_l0"].T + state["gru.bias_hh_l0"]).chunk(3, dim=1)
        reset, update = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        h = (1 - update) * torch.tanh(of_x[2] + reset * of_h[2]) + update * h
    return h


def cnn3d_state(channels: tuple[int, ...], num_cells: int) -> State:
    """Six convolutions and fc; the last of `channels` is the encoder's width."""
    pairs = zip((1, *channels), channels, strict=False)
    state = {k: v for i, (a, b) in enumerate(pairs, 1) for k, v in _convolution(f"conv{i}", a, b, 3).items()}
    return state | _linear("fc", channels[-1] * num_cells, channels[-1])


def cnn3d(state: State, x_BXYZ: Tensor) -> Tensor:
    """Two convolutions and a pool, three times."""
    maps = x_BXYZ[:, None]
    for i, pool in ((1, 2), (3, 3), (5, 4)):
        for name in (f"conv{i}", f"conv{i + 1}"):
            maps = conv3d(maps, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
        maps = max_pool3d(maps, pool)
    return maps.flatten(1) @ state["fc.weight"].T + state["fc.bias"]


def maxout_state(width: int, first: int, second: int) -> State:
    """Two Maxout layers of two pieces between three batch normalisations."""
    layers = _linear("op1.lin", width, 2 * first) | _linear("op3.lin", first, 2 * second)
    return _norm("op0", width) | _norm("op2.0", first) | _norm("op4.0", second) | layers


def maxout(state: State, x: Tensor) -> Tensor:
    """Neighbours in pairs, the larger of each."""
    x = _normed(x, state, "op0", 1e-4)
    for linear, norm in (("op1.lin", "op2.0"), ("op3.lin", "op4.0")):
        both = x @ state[f"{linear}.weight"].T + state[f"{linear}.bias"]
        x = _normed(torch.maximum(both[:, 0::2], both[:, 1::2]), state, norm, 1e-5)
    return x


def vgg11_state(hidden: int) -> State:
    """VGG11 with batch normalisation, dropout counted among `features`, and one Linear."""
    state, width = _linear("model.classifier", 512 * 7 * 7, hidden), 3
    for position, channels in _VGG11.items():
        state |= _convolution(f"model.features.{position}", width, channels, 2)
        state |= _norm(f"model.features.{position + 1}", channels)
        width = channels
    return state


def vgg11(state: State, maps: Tensor) -> Tensor:
    """Pixels as they are."""
    for position in _VGG11:
        name = f"model.features.{position}"
        maps = conv2d(maps, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        maps = _normed(maps, state, f"model.features.{position + 1}", 1e-5).relu()
        maps = max_pool2d(maps, 2) if position in _POOLED_AFTER else maps
    pooled = adaptive_avg_pool2d(maps, 7).flatten(1)
    return pooled @ state["model.classifier.weight"].T + state["model.classifier.bias"]


def patches(state: State, name: str, vector: Tensor, num_patches: int) -> Tensor:
    """The vector cut into patches, zeros to the right of it, one Linear for all."""
    width = state[f"{name}.weight"].shape[1]
    padded = pad(vector, (0, width * num_patches - vector.shape[1]))
    return padded.view(len(vector), num_patches, width) @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mlp_state(width: int, hidden: int, num_outputs: int) -> State:
    """Two Linear layers; ReLU and dropout count among `network`."""
    return _linear("network.0", width, hidden) | _linear("network.3", hidden, num_outputs)


def mlp(state: State, x: Tensor) -> Tensor:
    """One hidden layer."""
    hidden = (x @ state["network.0.weight"].T + state["network.0.bias"]).relu()
    return hidden @ state["network.3.weight"].T + state["network.3.bias"]


@dataclass(frozen=True)
class Restated:
    """One released encoder: its weights, the sizes of its array, what it makes of (B, *sizes), what config.json says of it."""

    kind: str  # our name for it
    state: State
    sizes: tuple[int, ...]
    tokens: Callable[[Tensor], Tensor]  # (B, *sizes) to (B, P, D)
    told: Any  # under modalities of config.json


def patched(kind: str, num_patches: int, hidden_dim: int) -> Restated:
    """An encoder whose vector is cut into patches: `0` and `1` of a Sequential, or a patch embedding alone."""
    if kind == "patch":
        state = _linear("projection", math.ceil(10 / num_patches), hidden_dim)
        return Restated(kind, state, (10,), lambda x: patches(state, "projection", x, num_patches), 10)
    width = hidden_dim if kind == "cnn3d" else 10
    own, vector, sizes, told = _encoder(kind, width)
    projection = _linear("1.projection", math.ceil(width / num_patches), hidden_dim)
    state = {f"0.{key}": value for key, value in own.items()} | projection
    return Restated(kind, state, sizes, lambda x: patches(projection, "1.projection", vector(own, x), num_patches), told)


def unpatched(kind: str, hidden_dim: int) -> Restated:
    """An encoder of one token, as InterpretCC runs have it: its own vector, or that through one Linear."""
    last = {"maxout": "hid2val", "cnn2d": "1.fc"}.get(kind)
    width = 10 if last else hidden_dim
    own, vector, sizes, told = _encoder(kind, width)
    state = {f"0.{key}": value for key, value in own.items()} if kind == "cnn2d" else own
    projection = _linear(last, width, hidden_dim) if last else {}

    def tokens(x: Tensor) -> Tensor:
        return patches(projection, last, vector(own, x), 1) if last else vector(own, x)[:, None]

    return Restated(kind, state | projection, sizes, tokens, told)


def _encoder(kind: str, width: int) -> tuple[State, Callable[[State, Tensor], Tensor], tuple[int, ...], Any]:
    """Weights, forward pass, sizes of the array, and what config.json says, of an encoder that makes vectors of `width`."""
    if kind == "gru":
        return gru_state(5, width), gru, (6, 5), [6, 5]
    if kind == "cnn3d":
        return cnn3d_state((2, 2, 3, 3, 4, width), 4), cnn3d, (24, 50, 71), [24, 50, 71]
    if kind == "maxout":
        return maxout_state(7, 6, width), maxout, (7,), None
    if kind == "mlp":
        return mlp_state(9, 8, width), mlp, (9,), None
    return vgg11_state(width), vgg11, (3, 32, 64), [3, 32, 64]
