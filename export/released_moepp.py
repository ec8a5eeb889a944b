"""Parameter names of the released code's MoE++ experts, in those of `MoEPlusPlusFusion` with compat "released".

Of a released MoE++ layer only the first norm and the attention take part in the answer: second norm, router and experts
are computed and thrown away, so no checkpoint ever held trained ones.
"""

import re

from export.errors import ExportError

_LIVE_KEYS = (
    (r"pos_embed", "position"),
    (r"layers\.(\d+)\.norm1\.(.*)", r"layers.\1.attention_norm.\2"),
    (r"layers\.(\d+)\.attn\.q\.(.*)", r"layers.\1.attention.query.\2"),
    (r"layers\.(\d+)\.attn\.kv\.(.*)", r"layers.\1.attention.key_value.\2"),
    (r"layers\.(\d+)\.attn\.proj\.(.*)", r"layers.\1.attention.projection.\2"),
    (r"classification_head\.fc\.(.*)", r"head.\1"),
)
_DEAD_KEYS = r"layers\.\d+\.(norm2|mlp\.moe)\..*"


def released_moepp_key(key: str) -> str | None:
    """An expert's released parameter name to ours; None for one that has no part in the answer. Raises `ExportError`."""
    for pattern, replacement in _LIVE_KEYS:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    if re.fullmatch(_DEAD_KEYS, key):
        return None
    raise ExportError(f"checkpoint key {key} is not one of a released MoE++ expert")
