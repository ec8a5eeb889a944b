"""Volumes to tokens by a small 3D convolutional network."""

import math

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.encoders.arrays import Standardise, array_shape
from training.model.encoders.base import Encoder, register_encoder
from training.model.encoders.patch import PatchProjection
from training.model.rows import TrainingRows

_POOLS = (2, 3, 4)


def _pooling(sizes: tuple[int, ...]) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Every stage's pooling window, and the sizes they leave; an axis shorter than the window is pooled whole."""
    windows = []
    for pool in _POOLS:
        windows.append(tuple(min(pool, size) for size in sizes))
        sizes = tuple(size // step for size, step in zip(sizes, windows[-1], strict=True))
    return windows, sizes


def _convolution(num_inputs: int, num_outputs: int) -> nn.Conv3d:
    return nn.Conv3d(num_inputs, num_outputs, kernel_size=3, padding=1)


@register_encoder("cnn3d")
class VolumeEncoder(Encoder):
    """Three stages of conv, ReLU, conv, ReLU, max pool, Dropout3d over an (X, Y, Z) array; then Linear to D, cut into P patches.

    The released I2MoE code's Custom3DCNN for ADNI, by its parameter names; convolutions are 3 x 3 x 3 with padding 1, pools
    2, 3 and 4 without overlap. With channels a, b, c (32, 64, 128 as released):

        conv1 1-a, conv2 a-a, pool 2; conv3 a-b, conv4 b-b, pool 3; conv5 b-c, conv6 c-D, pool 4; fc (D X'Y'Z' -> D)

    A convolution u-v has 27uv + v parameters, fc D^2 X'Y'Z' + D. The released code reads (91, 109, 91) volumes with the last
    axis first, as (91, 91, 109), of which 3 x 3 x 4 cells reach fc; other sizes get an fc of their own, and an axis shorter
    than a pool is pooled whole.

    Missing cells are the mean over the cells of all training rows, by which volumes are standardised; 0 under `raw`.
    """

    class Config(Config):
        """Options of the volume encoder."""

        channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128)
        dropout: float = Field(default=0.2, ge=0, lt=1)  # of whole channels, after every stage
        raw: bool = False  # cells as they are

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "VolumeEncoder.Config") -> None:
        super().__init__()
        self.shape = array_shape(modality, ("x", "y", "z"), "cnn3d")
        self.raw = config.raw
        a, b, c = config.channels
        self.standardise = Standardise((1, 1, 1))
        self.conv1, self.conv2 = _convolution(1, a), _convolution(a, a)
        self.conv3, self.conv4 = _convolution(a, b), _convolution(b, b)
        self.conv5, self.conv6 = _convolution(b, c), _convolution(c, hidden_dim)
        windows, pooled_sizes = _pooling(self.shape)
        self.pools = nn.ModuleList(nn.MaxPool3d(window) for window in windows)
        self.dropout = nn.Dropout3d(config.dropout)
        self.fc = nn.Linear(hidden_dim * math.prod(pooled_sizes), hidden_dim)
        self.patches = PatchProjection(hidden_dim, num_patches, hidden_dim)

    def fit(self, x_NF: TrainingRows) -> None:
        """One mean and one standard deviation over all cells."""
        if not self.raw:
            self.standardise.fit(x_NF.unflatten(1, self.shape))

    def baseline(self) -> Tensor:
        """The mean of the training rows; 0 where cells are read as they are."""
        return self.standardise.mean.expand(self.shape).flatten()

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, X Y Z) to tokens (B, P, D)."""
        maps = self.standardise(x_BF.unflatten(1, self.shape))[:, None]  # (B, 1, X, Y, Z)
        stages = ((self.conv1, self.conv2), (self.conv3, self.conv4), (self.conv5, self.conv6))
        for (first, second), pool in zip(stages, self.pools, strict=True):
            maps = self.dropout(pool(torch.relu(second(torch.relu(first(maps))))))
        return self.patches(self.fc(maps.flatten(1)))
