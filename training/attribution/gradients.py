"""Integrated gradients of every expert's contribution towards one label.

All columns of a record become known together. With c_e(k) the contribution of expert e when column j is known to the share
k_j, the attribution of column j is

    a_ej = integral from 0 to 1 of dc_e/dk_j (t, ..., t) dt

and base_e + sum_j a_ej = c_e, where base_e = c_e(0, ..., 0): completeness (Sundararajan, Taly and Yan 2017, "Axiomatic
Attribution for Deep Networks", proposition 1, in the coordinates k). The integral is a Gauss-Lobatto sum of
`num_points` points, which has both ends among them, so base and contribution come with it; `gap` is what the sum lacks.
A router that sends a record elsewhere on the way makes c_e jump, and no gradient sees a jump: that is in the gap, too.

Shape suffixes: E experts, K points, B batch, R = K B rows, F columns, n modalities, P patches, D hidden, C outputs.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial.legendre import Legendre
from torch import Tensor
from torch.func import functional_call, stack_module_state
from torch.overrides import TorchFunctionMode

from service.bundle.manifest import TaskInfo
from training.attribution.base import Attribution, AttributionOutput, towards
from training.model.mixture import I2MoE


class _Plain(TorchFunctionMode):
    """Linear maps, layer normalisation, attention and concatenation by their formulas.

    As single operations torch cannot run them side by side, with weights of their own, for a batch of any size.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        if func is torch.cat:
            return _cat(*args, **(kwargs or {}))
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and not kwargs and len(args) == 3:
            query, key, value = args
            return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1) @ value
        return func(*args, **(kwargs or {}))


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Stacked and flattened; pieces of different sizes are taken apart first."""
    if len({tensor.shape[dim] for tensor in tensors}) > 1:
        return torch.stack([piece for tensor in tensors for piece in tensor.unbind(dim)], dim)
    axis = dim % tensors[0].ndim
    return torch.stack(list(tensors), axis).flatten(axis, axis + 1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = x @ weight.mT
    return product if bias is None else product + bias


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(dim=axes, keepdim=True)
    standard = centred / (centred.square().mean(dim=axes, keepdim=True) + eps).sqrt()
    scaled = standard if weight is None else standard * weight
    return scaled if bias is None else scaled + bias


def lobatto(num_points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (K,) of the Gauss-Lobatto rule on [0, 1], exact for polynomials of degree 2 K - 3.

    On [-1, 1] the nodes are the ends and the roots of P'_{K-1}, the weights 2 / (K (K - 1) P_{K-1}(node)^2).
    """
    polynomial = Legendre.basis(num_points - 1)
    nodes = np.concatenate([[-1.0], np.sort(polynomial.deriv().roots().real), [1.0]])
    weights = 2 / (num_points * (num_points - 1) * polynomial(nodes) ** 2)
    return torch.tensor((nodes + 1) / 2, dtype=torch.float32), torch.tensor(weights / 2, dtype=torch.float32)


class IntegratedGradients(Attribution):
    """The gradients of a model's contributions.

    Experts differ in their weights alone, so that they are computed side by side, each with shares of its own: one
    backward pass gives the gradients of all contributions.
    """

    method = "integrated gradients"
    nodes_K: Tensor
    weights_K: Tensor

    def __init__(self, model: I2MoE, task: TaskInfo, *, num_points: int) -> None:
        super().__init__()
        self.model, self.task, self.num_experts, self.num_points = model, task, len(model.roles), num_points
        self.num_rows = self.num_experts * num_points
        nodes_K, weights_K = lobatto(num_points)
        self.register_buffer("nodes_K", nodes_K, persistent=False)
        self.register_buffer("weights_K", weights_K, persistent=False)

    def forward(self, *inputs: Tensor) -> AttributionOutput:
        """Modalities (B, F) with NaN where missing, then label (B, C), one-hot: towards which label."""
        *modalities, label_BC = inputs
        with torch.enable_grad():
            known = [self._shares(x_BF) for x_BF in modalities]
            contribution_ER = self._contributions(modalities, known, label_BC.repeat(len(self.nodes_K), 1))
            gradients = torch.autograd.grad(contribution_ER.sum(), known)
        columns = tuple(self._integrate(gradient) for gradient in gradients)
        contribution_EKB = contribution_ER.detach().unflatten(1, (len(self.nodes_K), -1))
        base_BE, whole_BE = contribution_EKB[:, 0].T, contribution_EKB[:, -1].T
        attributed_BE = torch.stack([part.sum(dim=2) for part in columns]).sum(dim=0)
        return AttributionOutput(columns, base_BE, whole_BE, whole_BE - base_BE - attributed_BE)

    def _shares(self, x_BF: Tensor) -> Tensor:
        """How far every column is known, (E K B, F), for each expert, point and record."""
        shares = self.nodes_K[None, :, None, None] * torch.ones_like(x_BF)
        return shares.expand(self.num_experts, -1, -1, -1).flatten(0, 2).requires_grad_()

    def _integrate(self, gradient: Tensor) -> Tensor:
        """Gradients (E K B, F) to the sum over points (B, E, F)."""
        gradient_EKBF = gradient.unflatten(0, (self.num_experts, len(self.nodes_K), -1))
        return (gradient_EKBF * self.weights_K[:, None, None]).sum(dim=1).transpose(0, 1)

    def _contributions(self, modalities: Sequence[Tensor], known: Sequence[Tensor], label_RC: Tensor) -> Tensor:
        """Each expert's contribution (E, R) at its own shares."""
        copies = self.num_experts * len(self.nodes_K)
        tokens = self.model.embed_partly([x_BF.repeat(copies, 1) for x_BF in modalities], known)
        weights_ER = self._own_weights(tokens)
        logits_ERC = self._expert_logits(tokens.unflatten(0, (self.num_experts, -1)))
        return weights_ER * towards(logits_ERC, label_RC, self.task)

    def _own_weights(self, tokens: Tensor) -> Tensor:
        """Of tokens (E R, n, P, D) of every expert its own weight (E, R)."""
        weights_ERE = self.model.reweighting(tokens).unflatten(0, (self.num_experts, -1))
        return (weights_ERE * torch.eye(self.num_experts, device=tokens.device)[:, None]).sum(dim=2)

    def _expert_logits(self, tokens_ERnPD: Tensor) -> Tensor:
        """Every expert on tokens of its own: logits (E, R, C)."""
        experts = list(self.model.experts)
        parameters, buffers = stack_module_state(experts)
        shared = all(torch.equal(first, b) for e in experts for first, b in zip(experts[0].buffers(), e.buffers(), strict=True))
        buffers = dict(experts[0].named_buffers()) if shared else buffers

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], tokens_RnPD: Tensor) -> Tensor:
            return functional_call(experts[0], {**parameters, **buffers}, (tokens_RnPD,)).logits_BC

        parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        with _Plain():
            logits_ERC = torch.vmap(one, in_dims=(0, None if shared else 0, 0))(parameters, buffers, tokens_ERnPD)
        return logits_ERC if self.model.units is None else self.model.units(logits_ERC)
