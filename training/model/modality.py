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
        tokens_BPD = self.encoder(x_BF)
        if self.missing_token is None:
            return tokens_BPD
        absent_B = torch.isnan(x_BF).all(dim=1)
        return torch.where(absent_B[:, None, None], self.missing_token, tokens_BPD)
