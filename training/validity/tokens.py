"""Rows as tokens: encoders see each modality by itself and run once, whatever is then asked of the experts.

Shape suffixes: N rows, n modalities, P patches, D hidden.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.schema import FeatureSchema
from training.data.rows import RowArray
from training.inference import answers
from training.model.mixture import I2MoE

_ROWS_AT_ONCE = 1024


@contextmanager
def asking(model: I2MoE) -> Iterator[None]:
    """The model in evaluation mode, without gradients; left in the mode it was in."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def embed_rows(model: I2MoE, schema: FeatureSchema, arrays: Mapping[str, RowArray], *, workers: int = 0) -> Tensor:
    """Tokens (N, n, P, D) of (N, columns) arrays, read batch by batch."""
    sizes: list[torch.Size] = []

    def function(inputs: list[Tensor]) -> tuple[Tensor]:
        tokens_BnPD = model.embed(inputs)
        sizes.append(tokens_BnPD.shape[1:])
        return (tokens_BnPD.flatten(1),)

    (tokens_NK,) = answers(model, function, schema, arrays, workers=workers)
    return tokens_NK.unflatten(1, sizes[0])


def answer_rows(model: I2MoE, tokens_NnPD: Tensor) -> Output:
    """What a model in evaluation mode answers for rows given as tokens."""
    parts = [model.answer(tokens) for tokens in tokens_NnPD.split(_ROWS_AT_ONCE)]
    joined = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    return Output(**dict(zip(OUTPUT_NAMES, joined, strict=True)))
