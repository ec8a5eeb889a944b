"""Parameter names of the released code's experts and encoders, in ours: one table for each backbone and encoder.

Dead tensors are dropped: of a released MoE++ layer only the first norm and the attention take part in the answer (router
and experts are computed and thrown away), and a sparse layer saves its gate a second time under `all_gates`.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from export.errors import ExportError

State = Mapping[str, Tensor]  # a module's weights by name
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


# torchvision's VGG11 has its convolutions at 0, 4, 8, ... and each one's batch normalisation right after it. The released code
# puts a dropout layer after every ReLU, which moves all that follows.
_VGG11 = {0: 0, 5: 4, 10: 8, 14: 11, 19: 15, 23: 18, 28: 22, 32: 25}  # released convolution -> ours
_PROJECTION = (r"1\.projection\.(.*)", r"patches.projection.\1")
ENCODER_TABLES: Mapping[str, _Table] = {  # our encoder -> its keys; with patches the released encoder is `0` of a Sequential
    "patch": ((r"projection\.(.*)", r"patches.projection.\1"),),
    "mlp": ((r"(network\..*)", r"\1"),),
    "gru": ((r"(?:0\.)?(gru\..*)", r"\1"), _PROJECTION),
    "cnn3d": ((r"(?:0\.)?((?:conv[1-6]|fc)\..*)", r"\1"), _PROJECTION),
    "maxout": (
        (r"(?:0\.)?(op[0-4]\..*)", r"\1"),
        (r"hid2val\.(.*)", r"patches.projection.\1"),
        _PROJECTION,
    ),
    "cnn2d": (
        (r"0\.model\.(classifier\..*)", r"\1"),
        *((rf"0\.model\.features\.{theirs}\.(.*)", rf"features.{ours}.\1") for theirs, ours in _VGG11.items()),
        *((rf"0\.model\.features\.{theirs + 1}\.(.*)", rf"features.{ours + 1}.\1") for theirs, ours in _VGG11.items()),
        (r"1\.fc\.(.*)", r"patches.projection.\1"),
        _PROJECTION,
    ),
}
_TOLD = {"patch": "patch embedding", "mlp": "MLP", "gru": "GRU", "cnn3d": "3D CNN", "maxout": "Maxout network", "cnn2d": "VGG11"}


def encoder_kind(keys: Iterable[str]) -> str:
    """Which of our encoders has these released parameters. Raises `ExportError`."""
    names = list(keys)
    for kind, table in ENCODER_TABLES.items():
        if any(re.fullmatch(table[0][0], name) for name in names):
            return kind
    expected, found = ", ".join(_TOLD.values()), ", ".join(names[:3]) or "no weights"
    raise ExportError(f"expected the weights of a released {expected}, found {found}")


def encoder_key(kind: str, key: str) -> str:
    """An encoder's released parameter name to ours. Raises `ExportError`."""
    for pattern, replacement in ENCODER_TABLES[kind]:
        if replacement is not None and (match := re.fullmatch(pattern, key)):
            return match.expand(replacement)
    raise ExportError(f"key {key} is not one of a released {_TOLD[kind]}")
