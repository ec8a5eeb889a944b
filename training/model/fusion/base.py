"""What every fusion backbone shares: its arguments, its answer, its place in the registry.

A backbone is what one expert is made of: tokens of n modalities to C outputs. It knows nothing of the mixture it sits
in. Shape suffixes: B batch, n modalities, P patches, D hidden, C outputs.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, TypedDict, Unpack

from torch import Tensor, nn

from training.config import Config as Options
from training.model.registry import Registry
from training.model.variants import PerturbedTokens


class FusionOutput(NamedTuple):
    """A backbone's answer. Always every field: a backbone without a load-balancing loss answers a zero."""

    logits_BC: Tensor
    latent_BK: Tensor  # what the last linear map reads
    gate_loss: Tensor  # (), to be added to the training loss with a small weight; carries gradient to the routers


class FusionArguments(TypedDict):
    """What every backbone is told; one that has no use for an argument ignores it."""

    num_modalities: int
    num_patches: int  # tokens per modality
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_outputs: int
    dropout: float


class Fusion(nn.Module, ABC):
    """Base of all backbones. Subclasses name the class of their own options in `Config`."""

    Config: ClassVar[type[Options]]
    jumps: ClassVar[bool] = False  # a router sends tokens elsewhere at once, so a gradient does not tell how logits change

    def __init__(self, *, config: Options, **arguments: Unpack[FusionArguments]) -> None:
        super().__init__()
        self.config = config
        if arguments["num_modalities"] < 2:
            raise ValueError(f"fusion needs 2 modalities or more, found {arguments['num_modalities']}")
        self.num_modalities = arguments["num_modalities"]

    @abstractmethod
    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C). In evaluation mode a row's logits depend on that row alone."""

    def perturbed(self, tokens: PerturbedTokens) -> FusionOutput:
        """Logits (V B, C) of all variants. Backbones that treat tokens one by one at first need not do so for each variant."""
        return self(tokens.all())


FUSIONS: Registry[type[Fusion]] = Registry(Fusion, "a fusion")
register_fusion = FUSIONS.register
