"""Sampled Shapley values of features: known one after the other, in several fixed orders.

With c_e(S) the contribution of expert e when the features S are known, the attribution of feature j is the mean over
`num_orders` orders of c_e(those before j, and j) - c_e(those before j). In every order the differences add up to c_e(all) -
c_e(none), whatever the model does in between: completeness is exact, routers and jumps included. Over all orders the
mean is the Shapley value; a sample of orders, each with its reverse, estimates it without bias and with less variance
(Castro, Gomez and Tejada 2009, "Polynomial calculation of the Shapley value based on sampling"; antithetic orders: Mitchell
et al. 2022, "Sampling Permutations for Shapley Value Estimation").

A number, a category, a code, a word, a whole array and a whole embedded text are one feature each; the attribution of
several columns is spread evenly over those that are known. Shape suffixes: E experts, B batch, F columns, U features,
K orders, S = K (U + 1) states, R = B S rows, C outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.manifest import TaskInfo
from service.bundle.schema import CodesFeature, FeatureSchema, Modality, TextFeature
from training.attribution.base import Attribution, AttributionOutput, towards
from training.model.mixture import I2MoE

NUM_ORDERS = 4  # two random ones and their reverses


class _Units(NamedTuple):
    """The features of one modality, numbered through all modalities."""

    of_column_F: NDArray[np.intp]
    is_sparse_F: NDArray[np.bool_]  # codes and words: 0 is absence
    wide: tuple[slice, ...]  # arrays and embedded texts of several columns


class SampledShapley(Attribution):
    """Every expert's contribution, attributed by forward passes alone."""

    method = "sampled Shapley values"

    def __init__(self, model: I2MoE, schema: FeatureSchema, task: TaskInfo, *, num_orders: int = NUM_ORDERS) -> None:
        super().__init__()
        if num_orders < 2 or num_orders % 2:
            raise ValueError(f"expected an even number of orders, 2 or more, found {num_orders}")
        self.model, self.task, self.num_orders = model, task, num_orders
        units, self.num_units = _number(schema.modalities)
        self.wide = [one.wide for one in units]
        self.num_points = num_orders * (self.num_units + 1)
        self.num_rows = self.num_points
        rank_KU = _orders(self.num_units, num_orders)
        for i, one in enumerate(units):
            self.register_buffer(f"rank_{i}_KF", torch.from_numpy(rank_KU[:, one.of_column_F]), persistent=False)
            self.register_buffer(f"sparse_{i}_F", torch.from_numpy(one.is_sparse_F), persistent=False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> AttributionOutput:
        """Modalities (B, F) with NaN where missing, then label (B, C), one-hot: towards which label."""
        *modalities, label_BC = inputs
        contribution_BKSE = self._contributions(modalities, label_BC).unflatten(1, (self.num_orders, -1))
        base_BE, whole_BE = contribution_BKSE[:, 0, 0], contribution_BKSE[:, 0, -1]
        gain_BKUE = contribution_BKSE[:, :, 1:] - contribution_BKSE[:, :, :-1]
        columns = tuple(self._of_columns(i, x_BF, gain_BKUE) for i, x_BF in enumerate(modalities))
        attributed_BE = torch.stack([part.sum(dim=2) for part in columns]).sum(dim=0)
        return AttributionOutput(columns, base_BE, whole_BE, whole_BE - base_BE - attributed_BE)

    def _contributions(self, modalities: Sequence[Tensor], label_BC: Tensor) -> Tensor:
        """Each expert's contribution (B, S, E) in every state."""
        known = [self._known(i, x_BF) for i, x_BF in enumerate(modalities)]
        tokens_RnPD = self.model.embed_partly([self._repeated(x_BF) for x_BF in modalities], known)
        logits_ERC = self.model.run_experts(tokens_RnPD).logits
        logits_ERC = logits_ERC if self.model.units is None else self.model.units(logits_ERC)
        pull_ER = towards(logits_ERC, self._repeated(label_BC), self.task)
        return (self.model.reweighting(tokens_RnPD) * pull_ER.T).unflatten(0, (-1, self.num_points))

    def _repeated(self, x_BF: Tensor) -> Tensor:
        """Every record once for each state (R, F)."""
        return x_BF[:, None].expand(-1, self.num_points, -1).flatten(0, 1)

    def _known(self, i: int, x_BF: Tensor) -> Tensor:
        """Which columns of modality i are known, 0 or 1, in every state of every record (R, F)."""
        rank_KF = self.get_buffer(f"rank_{i}_KF")
        steps = torch.arange(self.num_units + 1, device=rank_KF.device)
        known_SF = (rank_KF[:, None] < steps[None, :, None]).to(x_BF.dtype).flatten(0, 1)
        return (known_SF[None] * torch.ones_like(x_BF)[:, None]).flatten(0, 1)

    def _of_columns(self, i: int, x_BF: Tensor, gain_BKUE: Tensor) -> Tensor:
        """Gains by place in the order to attributions of modality i's columns (B, E, F); what is missing has none."""
        rank_KF = self.get_buffer(f"rank_{i}_KF")
        places_KF = rank_KF + self.num_units * torch.arange(self.num_orders, device=rank_KF.device)[:, None]
        gain_BKFE = gain_BKUE.flatten(1, 2)[:, places_KF.flatten()].unflatten(1, (self.num_orders, -1))
        return gain_BKFE.mean(dim=1).mT * self._spread(i, x_BF)[:, None]

    def _spread(self, i: int, x_BF: Tensor) -> Tensor:
        """Of its feature's attribution each column's part (B, F): 0 where missing or absent, else one over their number."""
        absent_BF = self.get_buffer(f"sparse_{i}_F") & (x_BF == 0)
        spread_BF = (~torch.isnan(x_BF) & ~absent_BF).to(x_BF.dtype)
        for columns in self.wide[i]:
            known_BF = spread_BF[:, columns]
            even_BF = known_BF / known_BF.sum(dim=1, keepdim=True).clamp(min=1)
            spread_BF = torch.cat([spread_BF[:, : columns.start], even_BF, spread_BF[:, columns.stop :]], dim=1)
        return spread_BF


def _number(modalities: Sequence[Modality]) -> tuple[list[_Units], int]:
    """Features of all modalities, numbered; how many there are."""
    found, count = [], 0
    for modality in modalities:
        of_column: list[int] = []
        is_sparse: list[bool] = []
        wide: list[slice] = []
        for feature, columns in modality.columns():
            width, sparse = columns.stop - columns.start, isinstance(feature, CodesFeature | TextFeature)
            of_column += range(count, count + width) if sparse else [count] * width
            is_sparse += [sparse] * width
            wide += [columns] if width > 1 and not sparse else []
            count = of_column[-1] + 1
        found.append(_Units(np.array(of_column, np.intp), np.array(is_sparse, np.bool_), tuple(wide)))
    return found, count


def _orders(num_units: int, num_orders: int) -> NDArray[np.int64]:
    """Every feature's place (K, U) in each order, the same whenever and wherever they are drawn."""
    generator = np.random.default_rng(0)
    forwards = [generator.permutation(num_units) for _ in range(num_orders // 2)]
    return np.stack([rank for one in forwards for rank in (one, num_units - 1 - one)]).astype(np.int64)
