"""Parameter names of the released code's experts and encoders, in ours: one table per backbone.

Dead tensors are dropped: of a released MoE++ layer only the first norm and the attention take part in the answer (router
and experts are computed and thrown away), and a sparse layer saves its gate a second time under `all_gates`.
"""

import re
from collections.abc import Mapping

from export.errors import ExportError

_Table = tuple[tuple[str, str | None], ...]


def _block(prefix: str) -> _Table:
    """Norms and attention of a released layer, called `network` or `layers` by the backbone."""
    return (
        (rf"{prefix}\.(\d+)\.norm1\.(.*)", r"layers.\1.attention_norm.\2"),
        (rf"{prefix}\.(\d+)\.attn\.q\.(.*)", r"layers.\1.attention.query.\2"),
        (rf"{prefix}\.(\d+)\.attn\.kv\.(.*)", r"layers.\1.attention.key_value.\2"),
        (rf"{prefix}\.(\d+)\.attn\.proj\.(.*)", r"layers.\1.attention.projection.\2"),
        (r"pos_embed", "position"),
    )


_TRANSFORMER: _Table = (
    *_block("network"),
    (r"network\.(\d+)\.norm2\.(.*)", r"layers.\1.mlp_norm.\2"),
    (r"network\.(\d+)\.mlp\.network\.0\.(.*)", r"layers.\1.expand.\2"),
    (r"network\.(\d+)\.mlp\.network\.3\.(.*)", r"layers.\1.contract.\2"),
    (r"network\.(\d+)\.fc\.(.*)", r"head.\2"),
)
_SWITCHGATE: _Table = (
    (r"network\.(\d+)\.mlp\.all_gates\..*", None),
    (r"network\.(\d+)\.mlp\.gate\.gate\.(.*)", r"layers.\1.mlp.router.\2"),
    (r"network\.(\d+)\.mlp\.experts\.htoh4\.weight", r"layers.\1.mlp.expand.weight_SOI"),
    (r"network\.(\d+)\.mlp\.experts\.htoh4\.bias", r"layers.\1.mlp.expand.bias_SO"),
    (r"network\.(\d+)\.mlp\.experts\.h4toh\.weight", r"layers.\1.mlp.contract.weight_SOI"),
    (r"network\.(\d+)\.mlp\.experts\.h4toh\.bias", r"layers.\1.mlp.contract.bias_SO"),
    *_TRANSFORMER,
)
_MOEPP: _Table = (
    *_block("layers"),
    (r"classification_head\.fc\.(.*)", r"head.\1"),
    (r"layers\.\d+\.(norm2|mlp\.moe)\..*", None),
)
_INTERPRETCC: _Table = (
    (r"modality_gates\.(\d+)\.(.*)", r"scores.\1.\2"),
    (r"fusion_layer\.0\.(.*)", r"fuse.\1"),
    (r"classifier\.0\.(.*)", r"expand.\1"),
    (r"classifier\.2\.(.*)", r"head.\1"),
)
EXPERT_TABLES: Mapping[str, _Table] = {
    "transformer": _TRANSFORMER,
    "switchgate": _SWITCHGATE,
    "moepp": _MOEPP,
    "interpretcc": _INTERPRETCC,
}


def expert_key(fusion: str, key: str) -> str | None:
    """An expert's released parameter name to ours; None for one that has no part in the answer. Raises `ExportError`."""
    for pattern, replacement in EXPERT_TABLES[fusion]:
        if match := re.fullmatch(pattern, key):
            return None if replacement is None else match.expand(replacement)
    raise ExportError(f"checkpoint key {key} is not one of a released {fusion} expert")


def encoder_key(key: str) -> str | None:
    """A patch embedding's or MLP's released parameter name to ours; None for any other encoder's."""
    if key.startswith("projection."):
        return f"patches.{key}"
    return key if key.startswith("network.") else None
