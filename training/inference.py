"""Runs a trained model over arrays, in batches, without gradients."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.schema import FeatureSchema

_BATCH_SIZE = 1024
_MAX_CELLS = 1 << 24  # of one batch's inputs: volumes go through a few at a time


@torch.inference_mode()
def predict(model: nn.Module, schema: FeatureSchema, arrays: Mapping[str, NDArray[np.float32]]) -> Output:
    """The clean pass over (N, columns) arrays; leaves the model in the mode it was in."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    inputs = [torch.from_numpy(arrays[name]) for name in schema.names]
    size = max(1, min(_BATCH_SIZE, _MAX_CELLS // sum(x.shape[1] for x in inputs)))
    chunks = [model([x[i : i + size].to(device) for x in inputs]) for i in range(0, len(inputs[0]), size)]
    model.train(was_training)
    joined = [torch.cat(parts).cpu().numpy() for parts in zip(*chunks, strict=True)]
    return Output(**dict(zip(OUTPUT_NAMES, joined, strict=True)))
