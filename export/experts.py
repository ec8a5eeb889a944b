"""How the experts are laid out in a graph: one after the other for the CPU, stacked for the GPU, in float32 or float16.

A CPU runs fastest through one chain of matrix products per expert. A GPU spends most of a small batch on starting kernels: all
experts as one batched product each start an (n + 2)th of them. Shape suffixes: B batch, n modalities, P patches, D hidden,
T = n P tokens, E experts, C outputs, I inputs and O outputs of a linear map.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.errors import ExportError
from training.model.fusion.base import Fusion
from training.model.fusion.transformer import TransformerFusion, TransformerLayer

Target = Literal["cpu", "cuda"]


def lay_out(experts: nn.ModuleList, target: Target, *, half: bool) -> nn.Module:
    """A module from tokens (B, n, P, D) to logits (E, B, C), both float32.

    With `half` experts compute in float16. Encoders, which meet raw numbers, and the mixture with its calibration, whose
    sum must hold to seven digits, do not belong to the experts and stay float32. Raises `ExportError` for experts that route:
    rounding would send some tokens elsewhere, and what is said then is not nearly the same.
    """
    members = list(copy.deepcopy(experts).eval())
    if half and any(isinstance(expert, Fusion) and expert.jumps for expert in members):
        raise ExportError(f"--precision fp16: expected experts without a router, found {type(members[0]).__name__}; use fp32")
    transformers = [expert for expert in members if type(expert) is TransformerFusion]
    stacks = target == "cuda" and len(transformers) == len(members) > 1
    laid_out = StackedTransformers(transformers) if stacks else OneByOne(members)
    return InHalf(laid_out) if half else laid_out


class OneByOne(nn.Module):
    """Every expert by itself."""

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, tokens_BnPD: Tensor) -> Tensor:
        """(B, n, P, D) to (E, B, C)."""
        return torch.stack([expert(tokens_BnPD).logits_BC for expert in self.experts])


class InHalf(nn.Module):
    """A module that computes in float16 between float32 ends."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, tokens_BnPD: Tensor) -> Tensor:
        """As the module does."""
        logits: Tensor = self.module(tokens_BnPD.half())
        return logits.float()


class StackedTransformers(nn.Module):
    """Transformer experts of one shape as one: the same numbers, every linear map a batched product over E.

    Rows of all samples stand one after the other, (E, B T, D); attention takes experts for more samples.
    """

    def __init__(self, experts: Sequence[TransformerFusion]) -> None:
        super().__init__()
        self.num_modalities = experts[0].num_modalities
        self.position_ETD = nn.Parameter(torch.stack([expert.position.detach() for expert in experts]))
        layers: Iterable[Sequence[Any]] = zip(*(expert.layers for expert in experts), strict=True)
        *first_layers, self.last = (_StackedLayer(of_one_depth) for of_one_depth in layers)
        self.first = nn.ModuleList(first_layers)
        self.head = _StackedLinear([expert.head for expert in experts])

    def forward(self, tokens_BnPD: Tensor) -> Tensor:
        """(B, n, P, D) to (E, B, C)."""
        x_EBTD = tokens_BnPD.flatten(1, 2) + self.position_ETD[:, None]
        num_tokens = x_EBTD.shape[2]
        x_END = x_EBTD.flatten(1, 2)
        for layer in self.first:
            x_END = layer(x_END, num_tokens)
        pooled_EMD = self.last.pooled(x_END, num_tokens, num_tokens // self.num_modalities)
        logits_EBC: Tensor = self.head(pooled_EMD.unflatten(1, (-1, self.num_modalities)).flatten(2))
        return logits_EBC


def _means(x_END: Tensor, length: int) -> Tensor:
    """The mean over every `length` rows: (E, N, D) to (E, N / length, D)."""
    return x_END.unflatten(1, (-1, length)).mean(dim=2)


class _StackedLayer(nn.Module):
    """`TransformerLayer` of every expert, without dropout."""

    def __init__(self, layers: Sequence[TransformerLayer]) -> None:
        super().__init__()

        def linears(of: Callable[[TransformerLayer], nn.Linear]) -> "_StackedLinear":
            return _StackedLinear([of(layer) for layer in layers])

        attention = layers[0].attention
        self.num_heads, self.residual = attention.num_heads, layers[0].residual
        self.attention_norm = _StackedNorm([layer.attention_norm for layer in layers])
        self.query = linears(lambda layer: layer.attention.query)
        self.key_value = linears(lambda layer: layer.attention.key_value)
        self.projection = linears(lambda layer: layer.attention.projection)
        self.mlp_norm = _StackedNorm([layer.mlp_norm for layer in layers])
        self.expand = linears(lambda layer: layer.expand)
        self.contract = linears(lambda layer: layer.contract)

    def forward(self, x_END: Tensor, num_tokens: int) -> Tensor:
        """(E, B T, D) to (E, B T, D)."""
        x_END = self._attend(x_END, num_tokens)
        return x_END + self.contract(self._hidden(x_END))

    def pooled(self, x_END: Tensor, num_tokens: int, length: int) -> Tensor:
        """(E, B T, D) to the mean over every `length` tokens: the mean passes through the last linear map."""
        x_END = self._attend(x_END, num_tokens)
        return _means(x_END, length) + self.contract(_means(self._hidden(x_END), length))

    def _attend(self, x_END: Tensor, num_tokens: int) -> Tensor:
        normed_END = self.attention_norm(x_END)
        key_END, value_END = self.key_value(normed_END).chunk(2, dim=-1)
        parts = (t.reshape(-1, num_tokens, t.shape[-1]) for t in (self.query(normed_END), key_END, value_END))
        mixed, *_ = torch.onnx.ops.attention(*parts, q_num_heads=self.num_heads, kv_num_heads=self.num_heads)
        attended_END = self.projection(mixed.reshape(x_END.shape))
        return attended_END + (attended_END if self.residual == "released" else x_END)

    def _hidden(self, x_END: Tensor) -> Tensor:
        return F.gelu(self.expand(self.mlp_norm(x_END)))


class _StackedLinear(nn.Module):
    """y_e = x_e W_e^T + b_e."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight_EIO = nn.Parameter(torch.stack([layer.weight.T for layer in layers]))
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.bias_E1O = nn.Parameter(torch.stack(biases)[:, None]) if biases else None

    def forward(self, x_ENI: Tensor) -> Tensor:
        """(E, N, I) to (E, N, O)."""
        y_ENO = torch.bmm(x_ENI, self.weight_EIO)
        return y_ENO if self.bias_E1O is None else y_ENO + self.bias_E1O


class _StackedNorm(nn.Module):
    """Layer normalisation with scale and shift of every expert."""

    def __init__(self, norms: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.eps = norms[0].eps
        self.scale_E1D = nn.Parameter(torch.stack([norm.weight for norm in norms])[:, None])
        self.shift_E1D = nn.Parameter(torch.stack([norm.bias for norm in norms])[:, None])

    def forward(self, x_END: Tensor) -> Tensor:
        """(E, N, D) to (E, N, D)."""
        return F.layer_norm(x_END, x_END.shape[-1:], eps=self.eps) * self.scale_E1D + self.shift_E1D
