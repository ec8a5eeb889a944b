"""Calibration inside the graph: prediction = softmax(scale * logits + bias), fitted on validation rows.

Temperature scaling with a bias per class (bias-corrected temperature scaling, Alexandari, Kundaje and Shrikumar 2020);
for two classes it is Platt scaling of the margin, with two free parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.bundle.manifest import CalibrationInfo, TaskKind

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

    @property
    def method(self) -> str:
        """What `fit` does, for the manifest."""
        named = {"regression": "none", "multilabel": "Platt scaling per label"}
        return named.get(self.kind, "bias-corrected temperature scaling")

    def info(self, *, num_rows: int) -> CalibrationInfo:
        """As the manifest and explanations have it; `num_rows` it was fitted on."""
        return CalibrationInfo(
            method=self.method, scale=tuple(self.scale.tolist()), bias=tuple(self.bias.tolist()), num_rows=num_rows
        )

    def fit(self, logits_BC: Tensor, target_B: Tensor) -> None:
        """Minimise the log loss of validation rows, from the identity; regression has nothing to fit.

        Binary and multiclass (targets: class positions (B,)): one positive scale and C biases. Multilabel (targets: 0/1
        (B, C)): a positive scale and a bias per label.
        """
        if self.kind == "regression":
            return
        logits_BC, num_outputs = logits_BC.double(), logits_BC.shape[1]
        log_scale = torch.zeros(num_outputs if self.kind == "multilabel" else 1, dtype=torch.double, requires_grad=True)
        bias_C = torch.zeros(num_outputs, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_scale, bias_C], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            # A whisper of ridge keeps the fit finite where validation rows are perfectly separated.
            ridge = 1e-4 * (log_scale.square().sum() + bias_C.square().sum())
            loss = self._log_loss(logits_BC * log_scale.exp() + bias_C, target_B) + ridge
            loss.backward()
            return loss

        optimizer.step(closure)
        self._set(log_scale.detach(), bias_C.detach())

    def _log_loss(self, scores_BC: Tensor, target_B: Tensor) -> Tensor:
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(scores_BC, target_B.double())
        return F.cross_entropy(scores_BC, target_B)

    @torch.no_grad()
    def _set(self, log_scale: Tensor, bias_C: Tensor) -> None:
        self.scale.copy_(log_scale.exp().expand_as(self.scale))
        # A constant added to every score changes no softmax: biases are told around 0.
        self.bias.copy_(bias_C if self.kind == "multilabel" else bias_C - bias_C.mean())
