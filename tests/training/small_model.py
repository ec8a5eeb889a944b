"""Small schemas and models to look at from close up."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.bundle.features import ArrayFeature, CategoricalFeature, CodesFeature, NumericFeature
from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema, Modality
from training.model.build import ModelConfig, build_model, fit_encoders
from training.model.mixture import I2MoE

TASK = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
TINY: dict[str, Any] = {
    "hidden_dim": 8,
    "num_patches": 2,
    "num_layers": 1,
    "num_heads": 2,
    "encoders": {"default": {"embedding_dim": 4, "num_bins": 4, "num_frequencies": 2}},
}


def number(name: str) -> NumericFeature:
    """A numeric feature seen between -3 and 3."""
    return NumericFeature(name=name, minimum=-3, maximum=3)


def schema(*, missing: Any = "learned") -> FeatureSchema:
    """Three modalities with numbers, a category of three, codes of two and an array of three cells; 5, 3 and 3 columns."""
    mixed = Modality(
        name="mixed",
        features=(
            number("a"),
            number("b"),
            CategoricalFeature(name="sex", vocabulary=("female", "male", "other")),
            CodesFeature(name="codes", vocabulary=("I10", "I20")),
        ),
    )
    labs = Modality(name="labs", features=(number("x"), number("y"), number("z")))
    signal = Modality(name="signal", features=(ArrayFeature(name="signal", shape=(3,)),))
    return FeatureSchema(modalities=(mixed, labs, signal), missing=missing)


def rows(num_rows: int, *, missing_rate: float = 0.0, seed: int = 0) -> list[Tensor]:
    """Random inputs of `schema`, with cells missing at random."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(num_rows, 5))
    mixed[:, 2] = generator.integers(3, size=num_rows)
    mixed[:, 3:] = generator.random((num_rows, 2)) < 0.5
    arrays = [mixed, generator.normal(size=(num_rows, 3)), generator.normal(size=(num_rows, 3))]
    for array in arrays:
        array[generator.random(array.shape) < missing_rate] = np.nan
    return [torch.from_numpy(array.astype(np.float32)) for array in arrays]


def model(changes: Mapping[str, Any] | None = None, *, task: TaskInfo = TASK, missing: Any = "learned", seed: int = 0) -> I2MoE:
    """A fitted, untrained model of `schema` in evaluation mode."""
    torch.manual_seed(seed)
    built = build_model(
        ModelConfig.model_validate(TINY | dict(changes or {}) | {"missing": missing}), schema(missing=missing), task
    )
    fit_encoders(built, rows(64, seed=1))
    return built.eval()
