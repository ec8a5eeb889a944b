"""The transformer backbone: self-attention over the tokens of all modalities, then one linear head.

This is what the released I2MoE code calls MulT: a shared pre-norm encoder over concatenated tokens with a learned
position embedding, mean-pooled per modality. Shape suffixes: B batch, T tokens (n modalities x P patches), D hidden,
H heads, K head width, C outputs.
"""

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import Config
from training.model.dropout import Dropout
from training.model.fusion.base import Fusion, FusionArguments, FusionOutput, register_fusion
from training.model.fusion.short_attention import pays, short_attention, short_attention_of_variants
from training.model.variants import PerturbedTokens, Variants

Residual = Literal["input", "released"]


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D / H)) V over all tokens, then a projection (Vaswani et al. 2017, section 3.2).

    Query, key and value have no bias, as in the released code.
    """

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads, found {hidden_dim} and {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.key_value = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.projection = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.of_rows(x_BTD.flatten(0, 1), x_BTD.shape[1]).view_as(x_BTD)

    def of_rows(self, x_ND: Tensor, num_tokens: int) -> Tensor:
        """The same with the tokens of all samples one after the other, N = B T: (N, D) to (N, D)."""
        if torch.compiler.is_exporting():
            return self.projection(self._mixed_in_a_graph(x_ND, num_tokens).reshape(x_ND.shape))
        query_BTD, key_value_BTE = (layer(x_ND).unflatten(0, (-1, num_tokens)) for layer in (self.query, self.key_value))
        return self.projection(self._mixed(query_BTD, key_value_BTE).reshape(x_ND.shape))

    def of_variants(self, x_ND: Tensor, variants: Variants) -> Tensor:
        """The same where variants share tokens: (N, D), each token once, to (V B T, D)."""
        query_ND, key_value_NE = self.query(x_ND), self.key_value(x_ND)
        if self.training and pays(query_ND, variants.num_tokens):
            mixed_BTD = short_attention_of_variants(query_ND, key_value_NE, self.num_heads, variants)
        else:
            rows = (variants.spread(x).unflatten(0, (-1, variants.num_tokens)) for x in (query_ND, key_value_NE))
            mixed_BTD = self._mixed(*rows)
        return self.projection(mixed_BTD.flatten(0, 1))

    def _mixed(self, query_BTD: Tensor, key_value_BTE: Tensor) -> Tensor:
        if self.training and pays(query_BTD, query_BTD.shape[1]):
            return short_attention(query_BTD, key_value_BTE, self.num_heads)
        key_BTD, value_BTD = key_value_BTE.chunk(2, dim=-1)
        query_BHTK, key_BHTK, value_BHTK = (self._split_heads(t) for t in (query_BTD, key_BTD, value_BTD))
        return F.scaled_dot_product_attention(query_BHTK, key_BHTK, value_BHTK).transpose(1, 2).flatten(2)

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mixed_in_a_graph(self, x_ND: Tensor, num_tokens: int) -> Tensor:
        """ONNX's own attention, which takes heads apart by itself: (B T, D) to (B, T, D)."""
        hidden_dim = x_ND.shape[1]
        key_weight_DD, value_weight_DD = self.key_value.weight[:hidden_dim], self.key_value.weight[hidden_dim:]
        x_BTD = x_ND.view(-1, num_tokens, hidden_dim)
        query, key, value = (F.linear(x_BTD, w_DD) for w_DD in (self.query.weight, key_weight_DD, value_weight_DD))
        mixed_BTD, *_ = torch.onnx.ops.attention(query, key, value, q_num_heads=self.num_heads, kv_num_heads=self.num_heads)
        return mixed_BTD


class AttentionBlock(nn.Module):
    """What every layer of tokens begins with: pre-norm attention with its residual, and the norm before what follows.

    Subclasses add what follows; `residual` is explained at `TransformerLayer`. Within a layer tokens of all samples stand one
    after the other, (B T, D): matrices of two axes are what a graph runs fastest.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float, residual: Residual) -> None:
        super().__init__()
        self.residual = residual
        self.attention_norm = nn.LayerNorm(hidden_dim)
        self.attention = SelfAttention(hidden_dim, num_heads)
        self.mlp_norm = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def attend(self, x: Tensor | PerturbedTokens) -> Tensor:
        """(B, T, D), or perturbed tokens, to every sample's and variant's (B T, D)."""
        if isinstance(x, PerturbedTokens):
            x_ND = x.all().flatten(0, 2)
            attended_ND = self.attention.of_variants(self.attention_norm(x.rows_ND), x.variants)
        else:
            x_ND = x.flatten(0, 1)
            attended_ND = self.attention.of_rows(self.attention_norm(x_ND), x.shape[1])
        return (attended_ND if self.residual == "released" else x_ND) + self.dropout(attended_ND)


class TransformerLayer(AttentionBlock):
    """Pre-norm attention and a GELU MLP of width 2 D.

    residual "input":     x = x + Drop(Attn(LN(x)))     the usual pre-norm block
    residual "released":  a = Attn(LN(x)); x = a + Drop(a)     what the released code computes: the input is lost
    then                  x = x + Drop(MLP(LN(x)))
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float, residual: Residual) -> None:
        super().__init__(hidden_dim, num_heads, dropout, residual)
        self.expand = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.contract = nn.Linear(2 * hidden_dim, hidden_dim)

    def forward(self, x: Tensor | PerturbedTokens) -> Tensor:
        """(B, T, D), or perturbed tokens, to (B, T, D)."""
        x_ND = self.attend(x)
        return (x_ND + self.dropout(self.contract(self._hidden(x_ND)))).unflatten(0, (-1, num_tokens(x)))

    def pooled(self, x: Tensor | PerturbedTokens, num_modalities: int) -> Tensor:
        """(B, T, D), or perturbed tokens, to the mean over each modality's tokens (B, n, D).

        Without dropout the mean passes through the last linear map, which then has P times fewer rows.
        """
        if self.training and self.dropout.p > 0:
            return pool(self(x), num_modalities)
        x_ND = self.attend(x)
        per_modality = (-1, num_tokens(x) // num_modalities)
        mean_MD, hidden_MI = (rows.unflatten(0, per_modality).mean(dim=1) for rows in (x_ND, self._hidden(x_ND)))  # M = B n
        return (mean_MD + self.contract(hidden_MI)).unflatten(0, (-1, num_modalities))

    def _hidden(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (N, 2 D)."""
        return self.dropout(F.gelu(self.expand(self.mlp_norm(x_ND))))


def num_tokens(x: Tensor | PerturbedTokens) -> int:
    """T, of one variant of a sample."""
    return x.variants.num_tokens if isinstance(x, PerturbedTokens) else x.shape[1]


def pool(x_BTD: Tensor, num_modalities: int) -> Tensor:
    """(B, T, D) to the mean over each modality's tokens (B, n, D)."""
    return x_BTD.unflatten(1, (num_modalities, -1)).mean(dim=2)


@register_fusion("transformer")
class TransformerFusion(Fusion):
    """One expert: tokens of n modalities to C logits.

    Parameters: L (8 D^2 + 8 D) + n P D + (n D C + C) for L layers (reproduces Table 6 of the paper).
    """

    class Config(Config):
        """Options of the transformer backbone."""

        residual: Residual = "input"  # "released" reproduces the released code's attention block

    def __init__(self, *, config: "TransformerFusion.Config", **arguments: Unpack[FusionArguments]) -> None:
        super().__init__(config=config, **arguments)
        hidden_dim, num_heads = arguments["hidden_dim"], arguments["num_heads"]
        num_tokens = arguments["num_modalities"] * arguments["num_patches"]
        self.position = nn.Parameter(torch.zeros(num_tokens, hidden_dim))
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, num_heads, arguments["dropout"], config.residual) for _ in range(arguments["num_layers"])
        )
        self.head = nn.Linear(arguments["num_modalities"] * hidden_dim, arguments["num_outputs"])

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        """(B, n, P, D) to (B, C); there is no gate, so its loss is 0."""
        return self._answer(tokens_BnPD.flatten(1, 2) + self.position)

    def perturbed(self, tokens: PerturbedTokens) -> FusionOutput:
        """The same of all variants (V B, C)."""
        return self._answer(tokens.placed(self.position))

    def _answer(self, x: Tensor | PerturbedTokens) -> FusionOutput:
        for layer in self.layers[:-1]:
            x = layer(x)
        last = self.layers[-1]
        assert isinstance(last, TransformerLayer)
        latent_BK = last.pooled(x, self.num_modalities).flatten(1)
        return FusionOutput(self.head(latent_BK), latent_BK, latent_BK.new_zeros(()))
