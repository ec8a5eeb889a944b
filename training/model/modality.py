"""One modality's encoder together with what stands in when the whole modality is missing."""

import torch
from torch import Tensor, nn

from training.model.encoders import Encoder


class ModalityEncoder(nn.Module):
    """(B, F) to tokens (B, P, D); a row without a single value gets a learned token instead of an encoding of nothing."""

    def __init__(self, encoder: Encoder, num_patches: int, hidden_dim: int, *, has_missing_token: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.missing_token = nn.Parameter(0.02 * torch.randn(num_patches, hidden_dim)) if has_missing_token else None

    def forward(self, x_BF: Tensor) -> Tensor:
        """Tokens (B, P, D), finite whatever is missing."""
        return self._or_missing(x_BF, self.encoder(x_BF))

    def encode_partly(self, x_BF: Tensor, known_BF: Tensor) -> Tensor:
        """Tokens (B, P, D) of rows of which each column is known to a share; a missing modality is as missing at every one."""
        return self._or_missing(x_BF, self.encoder.encode_partly(x_BF, known_BF))

    def _or_missing(self, x_BF: Tensor, tokens_BPD: Tensor) -> Tensor:
        if self.missing_token is None:
            return tokens_BPD
        absent_B = torch.isnan(x_BF).all(dim=1)
        return torch.where(absent_B[:, None, None], self.missing_token, tokens_BPD)
