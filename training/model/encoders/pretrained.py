"""Weights from a local file, checked key by key. Nothing is ever downloaded, and no pickle is run."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from training.errors import RecipeError

_OPTIONAL = "num_batches_tracked"  # older files lack the counters of batch normalisation
_SHOWN = 5


def load_part(module: nn.Module, path: Path, *, prefix: str, ignore: str, place: str) -> None:
    """Fill `module` from the keys `prefix`... of a state dict saved with torch.save.

    Keys that begin with `ignore` are left alone. Raises `RecipeError`, beginning with `place`, that names the keys which are
    missing, unknown or of another shape.
    """
    state = _read(path, place)
    wanted = {prefix + key: tensor for key, tensor in module.state_dict().items()}
    required = [key for key in wanted if not key.endswith(_OPTIONAL)]
    missing = [key for key in required if key not in state]
    unknown = [key for key in state if key not in wanted and not key.startswith(ignore)]
    reshaped = [
        f"{key} of shape {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems = [_listed("missing", missing), _listed("unknown", unknown), _listed("unfit", reshaped)]
    if told := "; ".join(filter(None, problems)):
        raise RecipeError(f"{place}: {path}: expected {len(required)} keys {prefix}*, found {told}")
    module.load_state_dict({key.removeprefix(prefix): state.get(key, tensor) for key, tensor in wanted.items()})


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{more}"


def _read(path: Path, place: str) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RecipeError(f"{place}: {path}: no such file") from None
    except Exception as error:  # a damaged file makes torch stumble in many ways
        raise RecipeError(f"{place}: {path}: is not a state dict saved with torch.save ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise RecipeError(f"{place}: {path}: expected a state dict of tensors, found something else")
    return state
