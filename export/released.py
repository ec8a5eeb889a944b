"""Imports a checkpoint of the authors' released code (Raina-Xin/I2MoE): every backbone and encoder it trains.

Such a file holds `{"ensemble_model": weights, "encoder_dict": {modality: weights}}` and no configuration. What weights do
not tell (heads, temperature, sizes of arrays) comes from a config.json. It is loaded as plain tensors, never as pickle.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.bundle import Material
from export.errors import ExportError
from export.released_config import ReleasedConfig, load_released_config
from export.released_encoders import ReleasedEncoder, read_encoder
from export.released_keys import State, expert_key
from export.released_shapes import Dimensions, check_claims, find_fusion, read_dimensions
from service.bundle.card import NOT_RECORDED, ModelCard
from service.bundle.manifest import CalibrationInfo, TaskInfo, TaskKind
from service.bundle.schema import ArrayFeature, FeatureSchema, Modality
from training.checkpoint import load_tensors
from training.model.build import ModelConfig, ReweightingConfig, build_model
from training.model.mixture import I2MoE

_FEATURE = "vector"
_LEARNED = ("running_mean", "running_var")  # buffers that a checkpoint must bring


@dataclass(frozen=True, slots=True)
class Released:
    """A released model, rebuilt, in evaluation mode."""

    model: I2MoE
    schema: FeatureSchema  # one prepared array per modality; the released code knows no missing modality
    task: TaskInfo
    dimensions: Dimensions


def load_released(checkpoint: Path, config: ReleasedConfig) -> Released:
    """The released model, rebuilt. Raises `ExportError` naming what the checkpoint and the configuration disagree on."""
    ensemble, states = _read(checkpoint)
    if list(states) != list(config.modalities):
        raise ExportError(f"{checkpoint}: has modalities {list(states)}, the configuration names {list(config.modalities)}")
    try:
        return _rebuilt(ensemble, states, config)
    except ExportError as error:
        raise ExportError(f"{checkpoint}: does not fit the configuration: {error}") from error


def _read(checkpoint: Path) -> tuple[State, Mapping[str, State]]:
    """The experts' and the encoders' weights."""
    document = load_tensors(checkpoint)
    if not isinstance(document, dict) or not {"ensemble_model", "encoder_dict"} <= set(document):
        raise ExportError(f"{checkpoint}: expected ensemble_model and encoder_dict, as the released code saves them")
    ensemble, states = document["ensemble_model"], document["encoder_dict"]
    if not isinstance(states, dict) or not all(map(_is_state, (ensemble, *states.values()))):
        raise ExportError(f"{checkpoint}: expected tensors by name under ensemble_model and under each modality of encoder_dict")
    return ensemble, states


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _rebuilt(ensemble: State, states: Mapping[str, State], config: ReleasedConfig) -> Released:
    fusion = find_fusion(ensemble)
    weights = released_weights(ensemble, fusion)
    dimensions = read_dimensions(fusion, weights, len(states))
    check_claims(config, dimensions)
    encoders = _encoders(states, config, dimensions)
    schema, task = released_schema({name: encoder.sizes for name, encoder in encoders.items()}), _task(config, dimensions)
    model = build_model(_model_config(config, dimensions, encoders), schema, task)
    _fill(model, weights | _encoder_weights(encoders))
    return Released(model.eval(), schema, task, dimensions)


def _encoders(states: Mapping[str, State], config: ReleasedConfig, dimensions: Dimensions) -> dict[str, ReleasedEncoder]:
    num_patches = dimensions.num_patches or 1
    return {
        name: read_encoder(name, state, config.modalities[name], num_patches=num_patches, hidden_dim=dimensions.hidden_dim)
        for name, state in states.items()
    }


def _encoder_weights(encoders: Mapping[str, ReleasedEncoder]) -> dict[str, Tensor]:
    return {
        f"encoders.{position}.encoder.{name}": tensor
        for position, encoder in enumerate(encoders.values())
        for name, tensor in encoder.weights.items()
    }


def _fill(model: I2MoE, weights: State) -> None:
    """Load the weights. Statistics and calibration, which released checkpoints have not, stay at the identity."""
    kept = {name: tensor for name, tensor in model.named_buffers() if name in model.state_dict() and not name.endswith(_LEARNED)}
    try:
        model.load_state_dict(kept | dict(weights))
    except RuntimeError as error:
        raise ExportError(" ".join(str(error).split())) from error


def _fusion_options(config: ReleasedConfig, dimensions: Dimensions) -> dict[str, Any]:
    """The options under which our backbone computes what the released one does."""
    options: dict[str, dict[str, Any]] = {
        "transformer": {"residual": "released"},
        "switchgate": {"residual": "released", "num_experts": dimensions.num_experts},
        "moepp": {"compat": "released"},
        "interpretcc": {"tau": config.tau, "threshold": config.threshold, "hard": config.hard},
    }
    return options[dimensions.fusion]


def _model_config(config: ReleasedConfig, dimensions: Dimensions, encoders: Mapping[str, ReleasedEncoder]) -> ModelConfig:
    return ModelConfig(
        fusion=dimensions.fusion,
        fusion_options=_fusion_options(config, dimensions),
        hidden_dim=dimensions.hidden_dim,
        num_patches=dimensions.num_patches or 1,
        num_layers=dimensions.num_layers_fus or 1,
        num_heads=config.num_heads or 1,
        dropout=0.0,
        missing="reject",
        reweighting=ReweightingConfig(
            hidden_dim=dimensions.hidden_dim_rw or 1, num_layers=dimensions.num_layer_rw, temperature=config.temperature_rw or 1.0
        ),
        encoders={name: encoder.options for name, encoder in encoders.items()},
    )


def released_schema(sizes: Mapping[str, tuple[int, ...]]) -> FeatureSchema:
    """One array per modality, of the sizes the encoder reads."""
    modalities = [Modality(name=name, features=(ArrayFeature(name=_FEATURE, shape=shape),)) for name, shape in sizes.items()]
    return FeatureSchema(modalities=tuple(modalities), missing="reject")


def released_weights(ensemble: State, fusion: str) -> dict[str, Tensor]:
    """Released names of the experts and the reweighting to ours. `module.` prefixes are ignored. Raises `ExportError`."""
    weights = {}
    for full_key, tensor in ensemble.items():
        key = full_key.removeprefix("module.")
        if match := re.fullmatch(r"reweight\.mlp\.network\.(.*)", key):
            weights[f"reweighting.mlp.{match[1]}"] = tensor
        elif match := re.fullmatch(r"interaction_experts\.(\d+)\.fusion_model\.(.*)", key):
            name = expert_key(fusion, match[2])
            if name is not None:
                weights[f"experts.{match[1]}.{name}"] = tensor.squeeze(0) if name == "position" else tensor
        else:
            raise ExportError(f"checkpoint key {full_key} is not one of a released I2MoE model")
    return weights


def _kind(config: ReleasedConfig, num_classes: int) -> TaskKind:
    """The task's kind. Raises `ExportError` where config.json contradicts the number of classes or itself."""
    is_one = num_classes == 1 and not config.multilabel
    if config.regression not in (None, is_one):
        told = f"with {num_classes} classes and multilabel = {config.multilabel}, found {config.regression}"
        raise ExportError(f"regression: expected {is_one} {told}")
    if is_one or config.multilabel:
        return "regression" if is_one else "multilabel"
    return "binary" if num_classes == 2 else "multiclass"


def _task(config: ReleasedConfig, dimensions: Dimensions) -> TaskInfo:
    kind, num_classes = _kind(config, dimensions.num_classes), dimensions.num_classes
    if config.labels and len(config.labels) != num_classes:
        raise ExportError(f"labels: expected {num_classes}, as many as the weights have classes, found {len(config.labels)}")
    labels = config.labels or tuple(f"class {i}" for i in range(num_classes))
    training_mean = config.training_mean if kind == "regression" else None
    return TaskInfo(kind=kind, labels=labels, outcome=config.outcome, training_mean=training_mean)


_MODEL_CARD = ModelCard(
    intended_use="Research. Not for clinical decisions.",
    population=NOT_RECORDED,
    exclusions=NOT_RECORDED,
    limits="Uncalibrated; inputs must be prepared exactly as in the run that trained it.",
    data=NOT_RECORDED,
    licence=NOT_RECORDED,
)


def released_material(checkpoint: Path, config_path: Path) -> Material:
    """Everything for a bundle of a released checkpoint. Raises `ExportError`."""
    config = load_released_config(config_path)
    released = load_released(checkpoint, config)
    num_classes = released.dimensions.num_classes
    ones, zeros = torch.ones(num_classes).tolist(), torch.zeros(num_classes).tolist()
    return Material(
        model=released.model,
        name=config.name,
        version=config.version,
        schema=released.schema,
        task=released.task,
        calibration=CalibrationInfo(method="none", scale=tuple(ones), bias=tuple(zeros), num_rows=0),
        metrics={},
        explanation=None,
        model_card=config.model_card or _MODEL_CARD,
        example_record={modality.name: {_FEATURE: _example(modality.width)} for modality in released.schema.modalities},
        reference={},
        provenance={
            "imported_from": checkpoint.name,
            "config": json.loads(config.model_dump_json(exclude={"model_card"})),
            "dimensions": asdict(released.dimensions),
        },
    )


def _example(width: int) -> list[float]:
    """Some numbers, always the same."""
    return [round(math.sin(i), 4) for i in range(width)]
