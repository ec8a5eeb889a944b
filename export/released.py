"""Imports a checkpoint of the authors' released code (Raina-Xin/I2MoE): every backbone, patch and MLP encoders.

Such a file holds `{"ensemble_model": weights, "encoder_dict": {modality: weights}}` and no configuration. What shapes do
not tell (heads, temperature, column counts) comes from a config.json. It is loaded as plain tensors, never as pickle.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator
from torch import Tensor

from export.bundle import Material
from export.errors import ExportError
from export.released_keys import encoder_key, expert_key
from service.bundle.manifest import CalibrationInfo, ModelCard, TaskInfo, TaskKind
from service.bundle.schema import ArrayFeature, FeatureSchema, Modality
from training.checkpoint import load_tensors
from training.config import Config
from training.data.config import ModalityName
from training.model.build import ModelConfig, ReweightingConfig, build_model
from training.model.mixture import I2MoE
from training.recipe import NAME_PATTERN, sentence

_FEATURE = "vector"


class ReleasedConfig(Config):
    """config.json: what a released checkpoint does not record, by the names of the released command line."""

    fusion: Literal["transformer", "switchgate", "moepp", "interpretcc"]
    modalities: dict[ModalityName, PositiveInt] = Field(min_length=2)  # name -> input columns, in expert order
    hidden_dim: PositiveInt
    num_patches: PositiveInt
    num_layers_fus: PositiveInt
    num_heads: PositiveInt
    num_classes: PositiveInt
    hidden_dim_rw: PositiveInt
    num_layer_rw: PositiveInt
    temperature_rw: float = Field(default=1.0, gt=0)
    num_experts: PositiveInt | None = None  # SwitchGate: experts of a sparse layer
    tau: float = Field(default=1.0, gt=0)  # InterpretCC: temperature, threshold and kind of its gates
    threshold: float = Field(default=0.5, gt=0, lt=1)
    hard: bool = True
    regression: bool = False
    multilabel: bool = False
    name: str = Field(default="released-i2moe", pattern=NAME_PATTERN)
    version: str = "1.0.0"
    outcome: str = "outcome"
    training_mean: float = 0.0  # regression: what contributions are measured against
    labels: tuple[str, ...] = ()
    model_card: ModelCard | None = None

    @model_validator(mode="after")
    def _labels_match(self) -> "ReleasedConfig":
        if self.labels and len(self.labels) != self.num_classes:
            raise ValueError(f"labels: expected {self.num_classes}, found {len(self.labels)}")
        if self.fusion == "switchgate" and self.num_experts is None:
            raise ValueError("num_experts: is required for switchgate")
        if self.regression and self.num_classes != 1:
            raise ValueError(f"num_classes: expected 1 for regression, found {self.num_classes}")
        if self.num_classes == 1 and not (self.regression or self.multilabel):
            raise ValueError("num_classes: expected 2 or more, found 1; or regression = true")
        return self

    @property
    def kind(self) -> TaskKind:
        """The task's kind."""
        if self.regression or self.multilabel:
            return "regression" if self.regression else "multilabel"
        return "binary" if self.num_classes == 2 else "multiclass"


def load_released_config(path: Path) -> ReleasedConfig:
    """Read config.json. Raises `ExportError` naming every key that is missing or wrong."""
    try:
        return ReleasedConfig.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ExportError(f"{path}: {'; '.join(sentence(problem) for problem in error.errors())}") from None


def load_released(checkpoint: Path, config: ReleasedConfig) -> I2MoE:
    """The released model, rebuilt. Raises `ExportError` naming what the checkpoint and the configuration disagree on."""
    document = load_tensors(checkpoint)
    if not isinstance(document, dict) or not {"ensemble_model", "encoder_dict"} <= set(document):
        raise ExportError(f"{checkpoint}: expected ensemble_model and encoder_dict, as the released code saves them")
    encoders = document["encoder_dict"]
    if list(encoders) != list(config.modalities):
        raise ExportError(f"{checkpoint}: has modalities {list(encoders)}, the configuration names {list(config.modalities)}")
    weights = released_weights(document["ensemble_model"], encoders, config.fusion)
    schema = released_schema(config)
    model = build_model(_model_config(config, encoders), schema, _task(config))
    try:
        model.load_state_dict(_with_buffers(weights, model))
    except RuntimeError as error:
        raise ExportError(f"{checkpoint}: does not fit the configuration: {' '.join(str(error).split())}") from error
    return model.eval()


def _with_buffers(weights: Mapping[str, Tensor], model: I2MoE) -> dict[str, Tensor]:
    """Statistics and calibration, which released checkpoints have not, stay at the identity."""
    return {name: tensor for name, tensor in model.named_buffers() if name in model.state_dict()} | dict(weights)


def _fusion_options(config: ReleasedConfig) -> dict[str, Any]:
    """The options under which our backbone computes what the released one does."""
    options: dict[str, dict[str, Any]] = {
        "transformer": {"residual": "released"},
        "switchgate": {"residual": "released", "num_experts": config.num_experts},
        "moepp": {"compat": "released"},
        "interpretcc": {"tau": config.tau, "threshold": config.threshold, "hard": config.hard},
    }
    return options[config.fusion]


def _encoder_options(config: ReleasedConfig, encoders: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Patch embeddings, or the MLPs that InterpretCC runs use; an MLP's depth and width are read off its weights."""
    options: dict[str, dict[str, Any]] = {}
    for modality in config.modalities:
        layers = [tensor for key, tensor in encoders[modality].items() if re.fullmatch(r"network\.\d+\.weight", key)]
        if layers:
            options[modality] = {"kind": "mlp", "raw": True, "num_layers": len(layers), "hidden": len(layers[0]), "dropout": 0.0}
        else:
            options[modality] = {"kind": "patch", "raw": True}
    return options


def _model_config(config: ReleasedConfig, encoders: Mapping[str, Mapping[str, Tensor]]) -> ModelConfig:
    return ModelConfig(
        fusion=config.fusion,
        fusion_options=_fusion_options(config),
        hidden_dim=config.hidden_dim,
        num_patches=config.num_patches,
        num_layers=config.num_layers_fus,
        num_heads=config.num_heads,
        dropout=0.0,
        missing="reject",
        reweighting=ReweightingConfig(
            hidden_dim=config.hidden_dim_rw, num_layers=config.num_layer_rw, temperature=config.temperature_rw
        ),
        encoders=_encoder_options(config, encoders),
    )


def released_schema(config: ReleasedConfig) -> FeatureSchema:
    """One prepared vector per modality; the released code knows no missing modality."""
    modalities = [
        Modality(name=name, features=(ArrayFeature(name=_FEATURE, shape=(num_columns,)),))
        for name, num_columns in config.modalities.items()
    ]
    return FeatureSchema(modalities=tuple(modalities), missing="reject")


def released_weights(
    ensemble: Mapping[str, Tensor], encoders: Mapping[str, Mapping[str, Tensor]], fusion: str
) -> dict[str, Tensor]:
    """Released parameter names to ours. `module.` prefixes are ignored. Raises `ExportError` for an unknown key."""
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
    return weights | _encoder_weights(encoders)


def _encoder_weights(encoders: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    weights = {}
    for position, (modality, state) in enumerate(encoders.items()):
        for key, tensor in state.items():
            if (name := encoder_key(key)) is None:
                raise ExportError(f"encoder {modality}: key {key} is not one of a released patch embedding or MLP")
            weights[f"encoders.{position}.encoder.{name}"] = tensor
    return weights


def _task(config: ReleasedConfig) -> TaskInfo:
    labels = config.labels or tuple(f"class {i}" for i in range(config.num_classes))
    return TaskInfo(
        kind=config.kind,
        labels=labels,
        outcome=config.outcome,
        training_mean=config.training_mean if config.regression else None,
    )


_UNKNOWN = "Not recorded in the checkpoint."


def released_material(checkpoint: Path, config_path: Path) -> Material:
    """Everything for a bundle of a released checkpoint. Raises `ExportError`."""
    config = load_released_config(config_path)
    model, task = load_released(checkpoint, config), _task(config)
    record: dict[str, Any] = {
        name: {_FEATURE: [round(math.sin(i), 4) for i in range(num_columns)]} for name, num_columns in config.modalities.items()
    }
    ones, zeros = torch.ones(config.num_classes).tolist(), torch.zeros(config.num_classes).tolist()
    return Material(
        model=model,
        name=config.name,
        version=config.version,
        schema=released_schema(config),
        task=task,
        calibration=CalibrationInfo(method="none", scale=tuple(ones), bias=tuple(zeros), num_rows=0),
        metrics={},
        explanation=None,
        model_card=config.model_card
        or ModelCard(
            intended_use="Research. Not for clinical decisions.",
            population=_UNKNOWN,
            exclusions=_UNKNOWN,
            limits="Uncalibrated; inputs must be prepared exactly as in the run that trained it.",
            data=_UNKNOWN,
            licence=_UNKNOWN,
        ),
        example_record=record,
        reference={},
        provenance={"imported_from": checkpoint.name, "config": json.loads(config.model_dump_json(exclude={"model_card"}))},
    )
