"""Perturbed tokens with what they share held once.

Of the V = 1 + M variants of a sample (the clean one, then one for every replaced modality) all tokens but the replaced ones are
the clean sample's. What is done to one token at a time, such as a norm or a linear map, is therefore done to n + M modalities'
tokens in place of V n: half of them where each of three modalities is replaced. Only attention, where tokens meet, needs all.

Shape suffixes: V variants, B samples, n modalities, P patches, T = n P tokens, M replaced modalities, D and E any width,
N = B n P + M B P rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Variants:
    """Where rows belong: first the clean tokens (B, n, P), then the replaced ones (M, B, P), that of `modalities[k]` at k."""

    num_samples: int
    num_modalities: int
    num_patches: int
    modalities: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, int, int, int]:
        """(V, B, n, P)."""
        return 1 + len(self.modalities), self.num_samples, self.num_modalities, self.num_patches

    @property
    def num_tokens(self) -> int:
        """Of one variant of a sample."""
        return self.num_modalities * self.num_patches

    def spread(self, rows_NE: Tensor) -> Tensor:
        """Every variant's tokens, one after the other: (N, E) to (V B T, E)."""
        spread: Tensor = _Spread.apply(rows_NE, self)
        return spread

    def fill(self, all_VBnP: Tensor, rows_N: Tensor) -> None:
        """Write each variant's tokens into (V, B, n, P, ...), of any strides, from rows (N, ...)."""
        clean_BnP, replaced_MBP = self._apart(rows_N)
        all_VBnP.copy_(clean_BnP)
        for k, modality in enumerate(self.modalities):
            all_VBnP[1 + k, :, modality].copy_(replaced_MBP[k])

    def collect(self, all_VBnP: Tensor) -> Tensor:
        """The gradient of rows (N, ...) from that of all variants' tokens: a clean token's is the sum over where it stands."""
        rows_N = all_VBnP.new_empty(self._num_rows, *all_VBnP.shape[4:])
        clean_BnP, replaced_MBP = self._apart(rows_N)
        clean_BnP.copy_(all_VBnP[0])
        for k, modality in enumerate(self.modalities):
            replaced_MBP[k].copy_(all_VBnP[1 + k, :, modality])
            for others in (slice(modality), slice(modality + 1, None)):
                clean_BnP[:, others].add_(all_VBnP[1 + k, :, others])
        return rows_N

    @property
    def _num_rows(self) -> int:
        return self.num_samples * self.num_patches * (self.num_modalities + len(self.modalities))

    def _apart(self, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the clean tokens' rows (B, n, P, ...) and of the replaced ones' (M, B, P, ...)."""
        num_clean = self.num_samples * self.num_tokens
        clean_N, replaced_N = rows_N[:num_clean], rows_N[num_clean:]
        clean_BnP = clean_N.unflatten(0, (self.num_samples, self.num_modalities, self.num_patches))
        return clean_BnP, replaced_N.unflatten(0, (len(self.modalities), self.num_samples, self.num_patches))


class _Spread(torch.autograd.Function):
    """`Variants.spread` and its gradient."""

    @staticmethod
    def forward(ctx: Any, rows_NE: Tensor, variants: Variants) -> Tensor:
        ctx.variants = variants
        all_VBnPE = rows_NE.new_empty(*variants.axes, rows_NE.shape[1])
        variants.fill(all_VBnPE, rows_NE)
        return all_VBnPE.flatten(0, 3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        variants: Variants = ctx.variants
        return variants.collect(gradient.unflatten(0, variants.axes)), None


@dataclass(frozen=True, slots=True)
class PerturbedTokens:
    """Tokens of all variants: rows (N, D), and where they belong."""

    rows_ND: Tensor
    variants: Variants

    @classmethod
    def of(cls, clean_BnPD: Tensor, replaced_BPD: Sequence[Tensor], modalities: Sequence[int]) -> Self:
        """Clean tokens, and those that stand in variant 1 + k in place of `modalities[k]`'s."""
        rows_ND = torch.cat([clean_BnPD.flatten(0, 2), *(tokens.flatten(0, 1) for tokens in replaced_BPD)])
        b, n, p, _ = clean_BnPD.shape
        return cls(rows_ND, Variants(b, n, p, tuple(modalities)))

    def all(self) -> Tensor:
        """(V B, n, P, D), the clean samples first."""
        _, _, n, p = self.variants.axes
        return self.variants.spread(self.rows_ND).unflatten(0, (-1, n, p))

    def placed(self, position_TD: Tensor) -> Self:
        """The same with each token's position embedding added."""
        v = self.variants
        position_nPD = position_TD.unflatten(0, (v.num_modalities, v.num_patches))
        clean_ND = position_TD.expand(v.num_samples, -1, -1).flatten(0, 1)
        replaced_ND = position_nPD[list(v.modalities)].unsqueeze(1).expand(-1, v.num_samples, -1, -1).flatten(0, 2)
        return type(self)(self.rows_ND + torch.cat([clean_ND, replaced_ND]), v)
