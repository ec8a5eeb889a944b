"""Calibration inside the graph: prediction = softmax(scale * logits + bias), fitted on validation rows.

Temperature scaling with a bias per class (bias-corrected temperature scaling, Alexandari, Kundaje and Shrikumar 2020);
for two classes it is Platt scaling of the margin, with two free parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.bundle.manifest import TaskKind

_MAX_ITERATIONS = 200


class Calibration(nn.Module):
    """Buffers `scale` (C,) and `bias` (C,), the identity until fitted; the task's kind chooses the link.

    Binary and multiclass: softmax. Multilabel: sigmoid. Regression: none, and nothing to fit.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, num_outputs: int, kind: TaskKind) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("scale", torch.ones(num_outputs))
        self.register_buffer("bias", torch.zeros(num_outputs))

    def forward(self, logits_BC: Tensor) -> Tensor:
        """Logits (B, C) to calibrated predictions (B, C)."""
        if self.kind == "regression":
            return logits_BC.clone()  # an output of its own, also in the graph
        scores_BC = logits_BC * self.scale + self.bias
        return torch.sigmoid(scores_BC) if self.kind == "multilabel" else torch.softmax(scores_BC, dim=-1)

    @torch.no_grad()
    def _set(self, log_scale: Tensor, bias_C: Tensor) -> None:
        self.scale.fill_(float(log_scale.exp()))
        self.bias.copy_(bias_C - bias_C.mean())

    def fit(self, logits_BC: Tensor, target_B: Tensor) -> None:
        """Binary and multiclass: minimise the log loss of validation rows over one positive scale and C biases."""
        logits_BC = logits_BC.double()
        log_scale = torch.zeros((), dtype=torch.double, requires_grad=True)
        bias_C = torch.zeros(logits_BC.shape[1], dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_scale, bias_C], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            # A whisper of ridge keeps the fit finite where validation rows are perfectly separated.
            ridge = 1e-4 * (log_scale.square() + bias_C.square().sum())
            loss = F.cross_entropy(logits_BC * log_scale.exp() + bias_C, target_B) + ridge
            loss.backward()
            return loss

        optimizer.step(closure)
        self._set(log_scale.detach(), bias_C.detach())
