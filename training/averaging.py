"""The moving average of a model's weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """An exponential moving average whose memory grows to `decay`, so that early averages forget the start.

    average <- d average + (1 - d) weights, d = min(decay, (1 + t) / (10 + t)) after t updates; the first copies, as do
    buffers always.
    torch's own class with its tensors looked up once: a walk through a small model's modules takes longer than averaging.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self._parameters_of = (_tensors(self.module.parameters()), _tensors(model.parameters()))
        self._buffers_of = (_tensors(self.module.buffers()), _tensors(model.buffers()))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of the model that this is an average of."""
        del model
        averages, currents = self._parameters_of
        if (updates := int(self.n_averaged)) == 0:
            _copy(averages, currents)
        else:
            torch._foreach_lerp_(averages, currents, 1 - min(self.decay, (1 + updates) / (10 + updates)))
        _copy(*self._buffers_of)
        self.n_averaged += 1


def _tensors(found: Iterable[Tensor]) -> list[Tensor]:
    return list(found)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
