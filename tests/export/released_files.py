"""Checkpoints as the released code saves them, made of a model's own weights under their released names."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.bundle.manifest import TaskInfo, TaskKind
from service.bundle.schema import ArrayFeature, FeatureSchema, Modality
from training.model.build import ModelConfig, ReweightingConfig, build_model
from training.model.mixture import I2MoE

HIDDEN_DIM = 16
NUM_LAYERS = 2
TRANSFORMER_NAMES = (
    (r"^position$", "pos_embed"),
    (r"^head\.", f"network.{NUM_LAYERS}.fc."),
    (r"^layers\.", "network."),
    (r"attention_norm", "norm1"),
    (r"mlp_norm", "norm2"),
    (r"attention\.query", "attn.q"),
    (r"attention\.key_value", "attn.kv"),
    (r"attention\.projection", "attn.proj"),
    (r"mlp\.router", "mlp.gate.gate"),
    (r"mlp\.expand\.weight_SOI", "mlp.experts.htoh4.weight"),
    (r"mlp\.expand\.bias_SO", "mlp.experts.htoh4.bias"),
    (r"mlp\.contract\.weight_SOI", "mlp.experts.h4toh.weight"),
    (r"mlp\.contract\.bias_SO", "mlp.experts.h4toh.bias"),
    (r"(\d)\.expand", r"\1.mlp.network.0"),
    (r"(\d)\.contract", r"\1.mlp.network.3"),
)
INTERPRETCC_NAMES = (
    (r"^scores\.", "modality_gates."),
    (r"^fuse\.", "fusion_layer.0."),
    (r"^expand\.", "classifier.0."),
    (r"^head\.", "classifier.2."),
)
_NAMES = {"transformer": TRANSFORMER_NAMES, "switchgate": TRANSFORMER_NAMES, "interpretcc": INTERPRETCC_NAMES}


def small_model(
    fusion: str, modalities: Iterable[str], kind: TaskKind, num_classes: int, *, num_patches: int, **options: Any
) -> I2MoE:
    """A model with the given backbone, always the same, in evaluation mode; every modality is 12 columns, cut into patches."""
    torch.manual_seed(0)
    config = ModelConfig(
        fusion=fusion,
        fusion_options=options,
        hidden_dim=HIDDEN_DIM,
        num_patches=num_patches,
        num_layers=NUM_LAYERS,
        num_heads=2,
        dropout=0.0,
        missing="reject",
        reweighting=ReweightingConfig(hidden_dim=8, num_layers=2, temperature=1.5),
        encoders={"default": {"kind": "patch", "raw": True}},
    )
    vectors = tuple(Modality(name=name, features=(ArrayFeature(name="x", shape=(12,)),)) for name in modalities)
    task = TaskInfo(
        kind=kind,
        labels=tuple(f"label {i}" for i in range(num_classes)),
        outcome="outcome",
        training_mean=0.0 if kind == "regression" else None,
    )
    model = build_model(config, FeatureSchema(modalities=vectors, missing="reject"), task)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # positions and the like start at 0
    return model.eval()


def released_names(model: I2MoE, fusion: str) -> dict[str, Tensor]:
    """A model's experts and reweighting as `ensemble_model` holds them: the tables of keys read backwards."""
    ensemble: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        if key.startswith("experts."):
            _, number, rest = key.split(".", 2)
            for ours, released in _NAMES[fusion]:
                rest = re.sub(ours, released, rest)
            ensemble[f"interaction_experts.{number}.fusion_model.{rest}"] = tensor[None] if rest == "pos_embed" else tensor
        elif key.startswith("reweighting."):
            ensemble[key.replace("reweighting.mlp", "reweight.mlp.network")] = tensor
    return ensemble


def save(path: Path, model: I2MoE, fusion: str, encoders: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write a checkpoint."""
    torch.save({"ensemble_model": released_names(model, fusion), "encoder_dict": {k: dict(v) for k, v in encoders.items()}}, path)
    return path
