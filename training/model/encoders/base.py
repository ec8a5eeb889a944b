"""What an encoder is, and the registry that makes encoders available to recipes by name."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from training.config import Config
from training.model.registry import Registry
from training.model.rows import TrainingRows


class Encoder(nn.Module, ABC):
    """Base of all encoders. Subclasses name their configuration class in `Config`."""

    Config: ClassVar[type[Config]]

    def fit(self, x_NF: TrainingRows) -> None:
        """Learn statistics from the training rows (N, F). Called once, before training.

        They are a tensor, or `StreamedRows` of data that stay in their files.
        """

    @abstractmethod
    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""


ENCODERS: Registry[type[Encoder]] = Registry(Encoder, "an encoder")
register_encoder = ENCODERS.register
