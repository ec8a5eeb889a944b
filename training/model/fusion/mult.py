"""MulT: every modality is reinforced by every other one through directed cross-modal attention.

Tsai et al. 2019 (ACL; arXiv 1906.00295), "Multimodal Transformer for Unaligned Multimodal Language Sequences". What the
I2MoE paper calls MulT is `training.model.fusion.transformer`; this is the model of that name. Differences from Tsai et
al.: learned instead of sinusoidal positions (tokens are patches, not time steps), the mean over patches instead of the
last time step, MLPs of width 2 D, one linear head. Shape suffixes: B batch, n modalities, P patches, D hidden,
S = n (n - 1) ordered pairs (target, source), H heads, K head width, W = (n - 1) D, C outputs.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.config import MAX_LAYERS, Config
from training.model.dropout import Dropout
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion
from training.model.fusion.short_attention import pays, short_attention
from training.model.fusion.stacked import StackedLayerNorm, StackedLinear
from training.model.fusion.transformer import TransformerLayer


class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(D / H)) V, queries from the target, keys and values from the source (section 3.1).

    Independent weights for each of S pairs, computed at once. Query, key and value have no bias, as in `SelfAttention`.
    """

    def __init__(self, num_pairs: int, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads, found {hidden_dim} and {num_heads}")
        self.num_pairs, self.num_heads = num_pairs, num_heads
        self.query = StackedLinear(num_pairs, hidden_dim, hidden_dim, bias=False)
        self.key_value = StackedLinear(num_pairs, hidden_dim, 2 * hidden_dim, bias=False)
        self.projection = StackedLinear(num_pairs, hidden_dim, hidden_dim)

    def forward(self, target_SBPD: Tensor, source_SBPD: Tensor) -> Tensor:
        """Two times (S, B, P, D) to (S, B, P, D)."""
        query, key_value = self.query(target_SBPD).flatten(0, 1), self.key_value(source_SBPD).flatten(0, 1)
        if self.training and pays(query, query.shape[1]):
            mixed = short_attention(query, key_value, self.num_heads)
        else:
            key, value = key_value.chunk(2, dim=-1)
            heads = F.scaled_dot_product_attention(self._split_heads(query), self._split_heads(key), self._split_heads(value))
            mixed = heads.transpose(1, 2).flatten(2)
        return self.projection(mixed.unflatten(0, (self.num_pairs, -1)))  # mixed is (S B, P, D)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CrossLayer(nn.Module):
    """x = x + Drop(CrossAttn(LN(x), LN(source))); x = x + Drop(MLP(LN(x))), for S pairs (section 3.2).

    Parameters: S (8 D^2 + 10 D).
    """

    def __init__(self, num_pairs: int, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.target_norm = StackedLayerNorm(num_pairs, hidden_dim)
        self.source_norm = StackedLayerNorm(num_pairs, hidden_dim)
        self.attention = CrossAttention(num_pairs, hidden_dim, num_heads)
        self.mlp_norm = StackedLayerNorm(num_pairs, hidden_dim)
        self.expand = StackedLinear(num_pairs, hidden_dim, 2 * hidden_dim)
        self.contract = StackedLinear(num_pairs, 2 * hidden_dim, hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_SBPD: Tensor, source_SBPD: Tensor) -> Tensor:
        """Two times (S, B, P, D) to (S, B, P, D)."""
        attended_SBPD = self.attention(self.target_norm(x_SBPD), self.source_norm(source_SBPD))
        x_SBPD = x_SBPD + self.dropout(attended_SBPD)
        hidden = self.dropout(F.gelu(self.expand(self.mlp_norm(x_SBPD))))
        return x_SBPD + self.dropout(self.contract(hidden))


def ordered_pairs(num_modalities: int) -> list[tuple[int, int]]:
    """All (target, source) of different modalities, by target, then by source."""
    return [(t, s) for t in range(num_modalities) for s in range(num_modalities) if t != s]


@register_fusion("mult")
class MulTFusion(Fusion):
    """One expert: L cross-modal layers for each ordered pair, self-attention over each target's n - 1 streams, a head.

    Every cross-modal layer reads the source's own tokens, not what other layers made of them (section 3.2). The streams
    of a target are concatenated to width W, pass `num_self_layers` transformer layers, are averaged over patches, and
    the n results are concatenated. No router: the gate loss is 0. Parameters: n P D + L n (n - 1) (8 D^2 + 10 D) +
    `num_self_layers` n (8 W^2 + 8 W) + (n W C + C): W grows with n, the middle term with n^3.
    """

    class Config(Config):
        """Options of the MulT backbone."""

        num_self_layers: int = Field(
            default=1, ge=1, le=MAX_LAYERS
        )  # self-attention layers per target, after the cross-modal ones

    target_S: Tensor
    source_S: Tensor

    def __init__(self, *, config: "MulTFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        num_modalities, hidden_dim = arguments["num_modalities"], arguments["hidden_dim"]
        num_heads, dropout = arguments["num_heads"], arguments["dropout"]
        targets, sources = zip(*ordered_pairs(num_modalities), strict=True)
        self.register_buffer("target_S", torch.tensor(targets), persistent=False)
        self.register_buffer("source_S", torch.tensor(sources), persistent=False)
        self.position = nn.Parameter(torch.zeros(num_modalities, arguments["num_patches"], hidden_dim))
        self.cross = nn.ModuleList(
            CrossLayer(len(targets), hidden_dim, num_heads, dropout) for _ in range(arguments["num_layers"])
        )
        width = (num_modalities - 1) * hidden_dim
        self.memories = nn.ModuleList(
            nn.Sequential(*(TransformerLayer(width, num_heads, dropout, "input") for _ in range(config.num_self_layers)))
            for _ in range(num_modalities)
        )
        self.head = nn.Linear(num_modalities * width, arguments["num_outputs"])

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to logits (B, C); the gate loss is 0."""
        tokens_nBPD = (tokens_BnPD + self.position).transpose(0, 1)
        x_SBPD, source_SBPD = tokens_nBPD[self.target_S], tokens_nBPD[self.source_S]
        for layer in self.cross:
            x_SBPD = layer(x_SBPD, source_SBPD)
        streams = x_SBPD.unflatten(0, (self.num_modalities, -1))  # (n, n - 1, B, P, D)
        joined_nBPW = streams.permute(0, 2, 3, 1, 4).flatten(3)
        pooled = [memory(x_BPW).mean(dim=1) for memory, x_BPW in zip(self.memories, joined_nBPW.unbind(0), strict=True)]
        latent_BK = torch.cat(pooled, dim=1)
        return FusionOutput(self.head(latent_BK), latent_BK, latent_BK.new_zeros(()))
