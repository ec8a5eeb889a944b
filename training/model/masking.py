"""Replaces one modality's tokens at a time: the perturbed inputs of the interaction losses.

Shape suffixes: B batch, n modalities, P patches, D hidden.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from training.model.variants import PerturbedTokens


def random_vector(tokens_BPD: Tensor) -> Tensor:
    """Independent N(0, 1) values for every sample, token and channel (the paper's choice)."""
    return torch.randn_like(tokens_BPD)


def zero_vector(tokens_BPD: Tensor) -> Tensor:
    """Zeros."""
    return torch.zeros_like(tokens_BPD)


def mean_vector(tokens_BPD: Tensor) -> Tensor:
    """The mean of the batch, for every sample (detached: a reference point, not a path for gradients).

    The released code keeps a mean over all steps since the first, in which embeddings of untrained encoders never fade.
    """
    return tokens_BPD.detach().mean(dim=0, keepdim=True).expand_as(tokens_BPD)


MASKINGS: Mapping[str, Callable[[Tensor], Tensor]] = {"random": random_vector, "zero": zero_vector, "mean": mean_vector}


def perturb(tokens_BnPD: Tensor, replacement: Callable[[Tensor], Tensor], modalities: Sequence[int]) -> PerturbedTokens:
    """The clean tokens (B, n, P, D), and variants of which variant 1 + k has `modalities[k]` replaced."""
    return PerturbedTokens.of(tokens_BnPD, [replacement(tokens_BnPD[:, modality]) for modality in modalities], modalities)
