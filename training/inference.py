"""Runs a trained model over arrays, in batches, without gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.schema import FeatureSchema
from training.batches import Batches
from training.data.rows import RowArray

_BATCH_SIZE = 1024
_MAX_CELLS = 1 << 24  # of one batch's inputs: volumes go through a few at a time


def input_batches(schema: FeatureSchema, arrays: Mapping[str, RowArray], *, workers: int = 0) -> Iterator[list[Tensor]]:
    """(N, columns) arrays as batches in the order of rows, one (B, columns) tensor per modality, on the CPU."""
    wanted = [arrays[name] for name in schema.names]
    size = max(1, min(_BATCH_SIZE, _MAX_CELLS // sum(array.shape[1] for array in wanted)))
    return Batches(wanted, torch.device("cpu"), workers=workers)(torch.arange(len(wanted[0])).split(size))


@torch.inference_mode()
def predict(model: nn.Module, schema: FeatureSchema, arrays: Mapping[str, RowArray], *, workers: int = 0) -> Output:
    """The clean pass over (N, columns) arrays; leaves the model in the mode it was in. `workers` read lazy rows ahead."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    chunks = [model([x.to(device) for x in inputs]) for inputs in input_batches(schema, arrays, workers=workers)]
    model.train(was_training)
    joined = [torch.cat(parts).cpu().numpy() for parts in zip(*chunks, strict=True)]
    return Output(**dict(zip(OUTPUT_NAMES, joined, strict=True)))


@torch.no_grad()
def answers(
    module: nn.Module,
    function: Callable[[list[Tensor]], Sequence[Tensor]],
    schema: FeatureSchema,
    arrays: Mapping[str, RowArray],
    *,
    workers: int = 0,
) -> list[Tensor]:
    """What `function` of batches, with `module` in evaluation mode, answers for (N, columns) arrays.

    Tensors (..., B, C) of each batch become one (..., N, C), on the module's device.
    """
    was_training, device = module.training, next(module.parameters()).device
    module.eval()
    chunks = [function([x.to(device) for x in inputs]) for inputs in input_batches(schema, arrays, workers=workers)]
    module.train(was_training)
    return [torch.cat(parts, dim=-2) for parts in zip(*chunks, strict=True)]
