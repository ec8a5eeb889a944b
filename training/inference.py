"""Runs a trained model over arrays, in batches, without gradients."""

from collections.abc import Mapping

import torch
from torch import nn

from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.schema import FeatureSchema
from training.batches import Batches
from training.data.rows import RowArray

_BATCH_SIZE = 1024
_MAX_CELLS = 1 << 24  # of one batch's inputs: volumes go through a few at a time


@torch.inference_mode()
def predict(model: nn.Module, schema: FeatureSchema, arrays: Mapping[str, RowArray], *, workers: int = 0) -> Output:
    """The clean pass over (N, columns) arrays; leaves the model in the mode it was in. `workers` read lazy rows ahead."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    wanted = [arrays[name] for name in schema.names]
    size = max(1, min(_BATCH_SIZE, _MAX_CELLS // sum(array.shape[1] for array in wanted)))
    batches = Batches(wanted, torch.device("cpu"), workers=workers)(torch.arange(len(wanted[0])).split(size))
    chunks = [model([x.to(device) for x in inputs]) for inputs in batches]
    model.train(was_training)
    joined = [torch.cat(parts).cpu().numpy() for parts in zip(*chunks, strict=True)]
    return Output(**dict(zip(OUTPUT_NAMES, joined, strict=True)))
