"""What encoders of arrays share: the shape they read, and standardisation learned from the training rows."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from service.bundle.schema import ArrayFeature, Modality
from training.errors import RecipeError
from training.model.columns import zero_nan
from training.model.rows import TrainingRows

_ROWS_AT_ONCE = 16  # statistics are summed in double precision over so many rows at a time


def array_shape(modality: Modality, axes: Sequence[str], encoder: str) -> tuple[int, ...]:
    """The shape of the one array a modality consists of. Raises `RecipeError` if it is anything else."""
    expected = f"modality {modality.name}: the {encoder} encoder expects one array of shape ({', '.join(axes)})"
    if len(modality.features) != 1:
        raise RecipeError(f"{expected}, found {len(modality.features)} features")
    (feature,) = modality.features
    if not isinstance(feature, ArrayFeature):
        raise RecipeError(f"{expected}, found {feature.name}, a {feature.kind} feature")
    if len(feature.shape) != len(axes):
        raise RecipeError(f"{expected}, found {feature.name} of shape {feature.shape}")
    return feature.shape


class Standardise(nn.Module):
    """z = (x - mean) / scale, then NaN to 0, which is the mean of the training rows.

    `shape` is that of one row with 1 for every axis the statistics are shared over: (1, F) for the columns of a sequence,
    (C, 1, 1) for the channels of an image. Until `fit` is called mean is 0 and scale 1: values stay as they are.
    """

    mean: Tensor  # of `shape`
    scale: Tensor  # of `shape`; 1 where the training rows never vary

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shared = tuple(axis + 1 for axis, size in enumerate(shape) if size == 1)
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(*shape))

    def fit(self, x: TrainingRows) -> None:
        """Mean and standard deviation over rows and shared axes of (N, *row), skipping NaN; goes through them twice."""
        count, total, squares = (torch.zeros_like(self.mean, dtype=torch.double) for _ in range(3))
        for part in self._parts(x):
            count += self._sum((~torch.isnan(part)).double())
            total += self._sum(zero_nan(part.double()))
        mean = total / count.clamp_min_(1)
        for part in self._parts(x):
            squares += self._sum(zero_nan(part.double() - mean).square())
        variance = squares / count
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)))

    @staticmethod
    def _parts(x: TrainingRows) -> Iterable[Tensor]:
        parts: Iterable[Tensor] = x.split(_ROWS_AT_ONCE)
        return parts

    def _sum(self, part: Tensor) -> Tensor:
        return part.sum(dim=(0, *self.shared), keepdim=True).squeeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *row) to the same shape, without NaN."""
        return zero_nan((x - self.mean) / self.scale)
