"""Images to tokens by a 2D convolutional network in the manner of VGG11 with batch normalisation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.errors import RecipeError
from training.model.dropout import Dropout
from training.model.encoders.arrays import Standardise, array_shape
from training.model.encoders.base import Encoder, register_encoder
from training.model.encoders.batch_norm import ImageBatchNorm, encode_present
from training.model.encoders.patch import PatchProjection
from training.model.encoders.pretrained import load_part
from training.model.rows import TrainingRows

IMAGENET_MEAN, IMAGENET_SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in [0, 1]
_MOST_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Architecture:
    """A stack of stages, each a few convolutions and a 2 x 2 max pool, then a fixed grid and one Linear."""

    stages: tuple[tuple[int, ...], ...]  # output channels of each stage's convolutions
    grid: int  # height and width the last maps are averaged to
    hidden: int  # outputs of the Linear, unless the recipe says otherwise


ARCHITECTURES = {
    "small": Architecture(((16,), (32,), (64,)), grid=2, hidden=128),
    "vgg11": Architecture(((64,), (128,), (256, 256), (512, 512), (512, 512)), grid=7, hidden=1024),
}


def _features(num_channels: int, architecture: Architecture, dropout: float) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU and pool layers at the positions torchvision gives them."""
    layers: list[nn.Module] = []
    for stage in architecture.stages:
        for width in stage:
            layers += [nn.Conv2d(num_channels, width, kernel_size=3, padding=1), ImageBatchNorm(width)]
            layers.append(nn.Sequential(nn.ReLU(), Dropout(dropout)))
            num_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _averages(size: int, grid: int) -> Tensor:
    """(grid, size): row i averages the cells from floor(i size / grid) to ceil((i + 1) size / grid)."""
    weights = torch.zeros(grid, size)
    for i in range(grid):
        start, stop = i * size // grid, math.ceil((i + 1) * size / grid)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


class GridPool(nn.Module):
    """torch's adaptive average pooling to a grid, as two matrix products, which ONNX can say for every size: R x C^T."""

    rows: Tensor  # (grid, H)
    columns: Tensor  # (W, grid)

    def __init__(self, height: int, width: int, grid: int) -> None:
        super().__init__()
        self.register_buffer("rows", _averages(height, grid), persistent=False)
        self.register_buffer("columns", _averages(width, grid).T.contiguous(), persistent=False)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, grid, grid)."""
        return self.rows @ maps_BCHW @ self.columns


@register_encoder("cnn2d")
class ImageEncoder(Encoder):
    """classifier(GridPool(features(scale(x)))), cut into P patches, of a (channels, height, width) array.

    `vgg11` is the released I2MoE code's encoder of ENRICO: VGG11 with batch normalisation (Simonyan and Zisserman, 2015,
    configuration A), dropout after every ReLU, a 7 x 7 grid and one Linear(25088, hidden) instead of three. Its `features`
    have torchvision's parameter names (convolutions at 0, 4, 8, 11, 15, 18, 22, 25, batch normalisation one further) and
    9,225,984 parameters for three channels. `small` is the default for training without pretrained weights: three
    convolutions (16, 32, 64), a 2 x 2 grid, Linear(256, hidden).

    Missing cells are their channel's mean of the training rows (`scaling = "training"`), ImageNet's, or 0. Rows without
    a value, and batches of one value per channel, do not touch the running statistics of the batch normalisation.
    """

    class Config(Config):
        """Options of the image encoder."""

        architecture: Literal["small", "vgg11"] = "small"
        hidden: int | None = Field(default=None, ge=1)  # outputs of the Linear: 128 for small, 1024 for vgg11
        dropout: float = Field(default=0.2, ge=0, lt=1)  # after every ReLU
        scaling: Literal["training", "imagenet", "none"] = "training"  # imagenet: for pixels in [0, 1]
        weights: Path | None = None  # a torchvision-style state dict; read once, when training starts
        frozen: bool = False  # convolutions and batch normalisation stay as in `weights`

        @model_validator(mode="after")
        def _frozen_has_weights(self) -> "ImageEncoder.Config":
            if self.frozen and self.weights is None:
                raise ValueError("frozen = true expects weights, found none")
            return self

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "ImageEncoder.Config") -> None:
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        self.config, self.modality = config, modality.name
        self.shape = _image_shape(modality, architecture, config)
        channels, height, width = self.shape
        self.standardise = Standardise((channels, 1, 1))
        self.features = _features(channels, architecture, config.dropout).requires_grad_(not config.frozen)
        shrink, grid = 2 ** len(architecture.stages), architecture.grid
        self.pool = GridPool(height // shrink, width // shrink, grid)
        hidden = config.hidden or architecture.hidden
        self.classifier = nn.Linear(architecture.stages[-1][-1] * grid**2, hidden)
        self.patches = PatchProjection(hidden, num_patches, hidden_dim)

    def fit(self, x_NF: TrainingRows) -> None:
        """Load `weights`; mean and standard deviation of every channel. Raises `RecipeError`."""
        if self.config.weights is not None:
            place = f"model.encoders.{self.modality}.weights"
            load_part(self.features, self.config.weights, prefix="features.", ignore="classifier.", place=place)
        if self.config.scaling == "training":
            self.standardise.fit(x_NF.unflatten(1, self.shape))
        elif self.config.scaling == "imagenet":
            self.standardise.mean.copy_(torch.tensor(IMAGENET_MEAN)[:, None, None])
            self.standardise.scale.copy_(torch.tensor(IMAGENET_SCALE)[:, None, None])

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Frozen batch normalisation keeps its statistics in training, too."""
        super().train(mode)
        for layer in self.features:
            if self.config.frozen and isinstance(layer, ImageBatchNorm):
                layer.eval()
        return self

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, C H W) to tokens (B, P, D)."""
        return encode_present(self._encode, x_BF) if self.training else self._encode(x_BF)

    def baseline(self) -> Tensor:
        """By which images are standardised: the training rows', ImageNet's, or 0."""
        return self.standardise.mean.expand(self.shape).flatten()

    def _encode(self, x_BF: Tensor) -> Tensor:
        maps_BCHW = self.features(self.standardise(x_BF.unflatten(1, self.shape)))
        return self.patches(self.classifier(self.pool(maps_BCHW).flatten(1)))


def _image_shape(modality: Modality, architecture: Architecture, config: ImageEncoder.Config) -> tuple[int, ...]:
    """(C, H, W). Raises `RecipeError` for images that are too small, or that have their channels last."""
    shape = array_shape(modality, ("channels", "height", "width"), "cnn2d")
    smallest = 2 ** len(architecture.stages)
    told = f"modality {modality.name}: the cnn2d encoder expects"
    if shape[0] > _MOST_CHANNELS >= shape[2]:
        raise RecipeError(f"{told} channels first, found shape {shape}")
    if min(shape[1:]) < smallest:
        raise RecipeError(f"{told} at least {smallest} x {smallest} pixels for {config.architecture}, found shape {shape}")
    if config.scaling == "imagenet" and shape[0] != len(IMAGENET_MEAN):
        raise RecipeError(f"{told} {len(IMAGENET_MEAN)} channels for scaling = 'imagenet', found shape {shape}")
    return shape
