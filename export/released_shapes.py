"""What the shapes of a released checkpoint's weights tell: the backbone, its dimensions, those of the reweighting network."""

import re
from dataclasses import asdict, dataclass

from export.errors import ExportError
from export.released_config import ReleasedConfig
from export.released_keys import State

# The first that an expert's key begins with. A dense layer of a SwitchGate expert looks like a transformer's.
_MARKS = (
    ("interpretcc", r"modality_gates\."),
    ("moepp", r"layers\.\d+\."),
    ("switchgate", r"network\.\d+\.mlp\.experts\."),
    ("transformer", r"network\."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """By the names of config.json; None for what a model of this kind does not have."""

    fusion: str
    hidden_dim: int
    num_patches: int | None
    num_layers_fus: int | None
    num_experts: int | None
    num_classes: int
    hidden_dim_rw: int | None
    num_layer_rw: int


def find_fusion(ensemble: State) -> str:
    """The backbone by the names of the released parameters. Raises `ExportError`."""
    keys = [re.sub(r".*\.fusion_model\.", "", key) for key in ensemble]
    for fusion, mark in _MARKS:
        if any(re.match(mark, key) for key in keys):
            return fusion
    raise ExportError(f"expected experts of {', '.join(name for name, _ in _MARKS)}, found {', '.join(keys[:3]) or 'no weights'}")


def read_dimensions(fusion: str, weights: State, num_modalities: int) -> Dimensions:
    """The dimensions of a model's weights, which have our names already. Raises `ExportError` where weights are missing."""
    try:
        return _dimensions(fusion, weights, num_modalities)
    except (KeyError, IndexError) as error:
        raise ExportError(f"expected the weights of a whole {fusion} model, found none or a misshapen one at {error}") from error


def _dimensions(fusion: str, weights: State, num_modalities: int) -> Dimensions:
    layers = [key for key in weights if re.fullmatch(r"experts\.0\.layers\.\d+\.attention_norm\.weight", key)]
    reweighting = [key for key in weights if re.fullmatch(r"reweighting\.mlp\.\d+\.weight", key)]
    is_patched = fusion != "interpretcc"
    first = weights["reweighting.mlp.0.weight"]
    position = weights["experts.0.position" if is_patched else "experts.0.scores.0.0.weight"]  # (n P, D) or (D, D)
    return Dimensions(
        fusion=fusion,
        hidden_dim=position.shape[1],
        num_patches=position.shape[0] // num_modalities if is_patched else None,
        num_layers_fus=len(layers) if is_patched else None,
        num_experts=weights["experts.0.layers.0.mlp.expand.weight_SOI"].shape[0] if fusion == "switchgate" else None,
        num_classes=weights["experts.0.head.weight"].shape[0],
        hidden_dim_rw=first.shape[0] if len(reweighting) > 1 else None,
        num_layer_rw=len(reweighting),
    )


_UNTOLD = {"interpretcc": ("tau", "threshold", "hard")}  # what weights leave open; of all others the number of heads


def check_claims(config: ReleasedConfig, dimensions: Dimensions) -> None:
    """Whatever config.json says of the dimensions must be so, and what they leave open must be there. Raises `ExportError`."""
    found = asdict(dimensions)
    claims = config.model_dump(include=set(found))
    problems = [
        f"{name}: expected {found[name]}, as the weights have it, found {claim}"
        for name, claim in claims.items()
        if None not in (claim, found[name]) and claim != found[name]
    ]
    untold = ("temperature_rw", *_UNTOLD.get(dimensions.fusion, ("num_heads",)))
    problems += [f"{name}: is required, since weights do not tell it" for name in untold if getattr(config, name) is None]
    if problems:
        raise ExportError("; ".join(problems))
