"""What an encoder is, and the registry that makes encoders available to recipes by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from training.config import Config
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


ENCODERS: dict[str, type[Encoder]] = {}


def register_encoder(name: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Class decorator: makes an encoder available to recipes under `name`."""

    def register(encoder: type[Encoder]) -> type[Encoder]:
        if name in ENCODERS:
            raise ValueError(f"an encoder named {name!r} is registered already: {ENCODERS[name].__qualname__}")
        ENCODERS[name] = encoder
        return encoder

    return register
