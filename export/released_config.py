"""config.json: what goes with a checkpoint of the authors' released code, which holds weights and no configuration."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, ValidationError

from export.errors import ExportError
from service.bundle.card import ModelCard
from service.bundle.documents import MAX_JSON_BYTES, DocumentError, read_file
from training.config import Config, sentence
from training.data.config import ModalityName
from training.recipe import NAME_PATTERN

Sizes = tuple[int, ...]  # of a modality's one array: (columns,), (steps, features), (channels, height, width) or (x, y, z)


def _as_sizes(value: Any) -> Any:
    """A number of columns is a list of one size. Raises `ValueError` for what is neither sizes nor null."""
    sizes = value if isinstance(value, list | tuple) else [value]
    if value is not None and not (sizes and all(type(size) is int and size > 0 for size in sizes)):
        found = f", found {value}" if isinstance(value, list | tuple) else ""  # `sentence` tells of anything else
        raise ValueError(f"expected a number of columns, an array's sizes or null{found}")
    return None if value is None else tuple(sizes)


class ReleasedConfig(Config):
    """config.json, by the names of the released command line.

    Weights do not tell `modalities` and what stands below it, up to `model_card`. They do tell the rest, which may be left
    out and must agree with them where it is given.
    """

    modalities: dict[ModalityName, Annotated[Sizes | None, BeforeValidator(_as_sizes)]] = Field(min_length=2)  # in expert order
    num_heads: PositiveInt | None = None  # required, except for InterpretCC, which has no attention
    temperature_rw: float | None = Field(default=None, gt=0)  # required: the scripts' differ; a wrong one is a wrong mixture
    tau: float | None = Field(default=None, gt=0)  # required for InterpretCC: temperature, threshold and kind of its gates
    threshold: float | None = Field(default=None, gt=0, lt=1)
    hard: bool | None = None
    multilabel: bool = False
    name: str = Field(default="released-i2moe", pattern=NAME_PATTERN)
    version: str = "1.0.0"
    outcome: str = "outcome"
    training_mean: float = 0.0  # regression: what contributions are measured against
    labels: tuple[str, ...] = ()
    model_card: ModelCard | None = None

    fusion: Literal["transformer", "switchgate", "moepp", "interpretcc"] | None = None
    hidden_dim: PositiveInt | None = None
    num_patches: PositiveInt | None = None
    num_layers_fus: PositiveInt | None = None
    num_experts: PositiveInt | None = None  # SwitchGate: experts of a sparse layer
    num_classes: PositiveInt | None = None
    hidden_dim_rw: PositiveInt | None = None
    num_layer_rw: PositiveInt | None = None
    regression: bool | None = None  # one class


def load_released_config(path: Path) -> ReleasedConfig:
    """Read config.json. Raises `ExportError` naming every key that is missing or wrong."""
    try:
        return ReleasedConfig.model_validate_json(read_file(path, MAX_JSON_BYTES), strict=True)
    except DocumentError as error:
        raise ExportError(f"{path}: {error}") from None
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ExportError(f"{path}: {'; '.join(sentence(problem) for problem in error.errors())}") from None
