"""What an encoder is, and the registry that makes encoders available to recipes by name."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.config import Config
from training.model.columns import partly
from training.model.registry import Registry
from training.model.rows import TrainingRows


class Encoder(nn.Module, ABC):
    """Base of all encoders. Subclasses name their configuration class in `Config`.

    They are constructed as `Class(modality, num_patches=P, hidden_dim=D, config=Class.Config(...))`, where `modality.width` is F
    and `config` the recipe's options. Tokens are finite whatever is missing. docs/your_table.md has an example.
    """

    Config: ClassVar[type[Config]]

    def fit(self, x_NF: TrainingRows) -> None:
        """Learn statistics from the training rows (N, F). Called once, before training.

        They are a tensor, or `StreamedRows` of data that stay in their files.
        """

    @abstractmethod
    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to tokens (B, P, D)."""

    def baseline(self) -> Tensor:
        """What `encode_partly` puts in the columns of which nothing is known: (F,), or () for all of them. Here 0."""
        return torch.zeros(())

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """Tokens (B, P, D) of rows of which each column is known to a share only: 1 is the row, 0 the baseline.

        The path along which `training.attribution` walks, so with a gradient in `known_BF`. Here a straight line between
        columns, which means nothing for a category: an encoder that reads categories says better. A missing value is as
        missing at every share.
        """
        return self(partly(x_BF, known_BF, self.baseline()))


ENCODERS: Registry[type[Encoder]] = Registry(Encoder, "an encoder")
register_encoder = ENCODERS.register
