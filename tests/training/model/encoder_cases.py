"""What every encoder is tested for, and the small modalities it is tested on."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.bundle.features import ArrayFeature, CategoricalFeature
from service.bundle.schema import FeatureSchema, Modality
from tests.training import small_model
from tests.training.model.exported import assert_same_graph
from training.errors import RecipeError
from training.model.build import ModelConfig, build_model
from training.model.encoders import ENCODERS, Encoder

NUM_PATCHES, HIDDEN_DIM = 3, 4
TABULAR = small_model.schema().modalities[0]  # a, b, sex (3), codes (2)


def array(*shape: int, name: str = "signal") -> Modality:
    """A modality of one array."""
    return Modality(name=name, features=(ArrayFeature(name=name, shape=shape),))


def encoder(kind: str, modality: Modality, options: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """An encoder, always the same, not fitted, in evaluation mode."""
    torch.manual_seed(0)
    encoder_class = ENCODERS[kind]
    arguments = {"num_patches": NUM_PATCHES, "hidden_dim": HIDDEN_DIM} | changes
    return encoder_class(modality, config=encoder_class.Config.model_validate(options or {}), **arguments).eval()


def values(modality: Modality, num_rows: int, *, missing_rate: float = 0.0, seed: int = 1) -> Tensor:
    """Random rows of a modality, cells missing at random; category cells hold 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 + 3 * torch.randn(num_rows, modality.width, generator=generator)
    for feature, columns in modality.columns():
        if isinstance(feature, CategoricalFeature):
            x[:, columns] = (x[:, columns] > 2).float()
    hidden = torch.rand(x.shape, generator=generator) < missing_rate
    return torch.where(hidden, torch.nan, x)


def num_parameters(module: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def assert_tokens_are_finite(model: Encoder, modality: Modality) -> None:
    """(B, P, D), finite, whatever is missing, in both modes, before and after fitting, whole columns and rows included."""
    gaps = values(modality, 6, missing_rate=0.4)
    gaps[0] = torch.nan
    gaps[:, 0] = torch.nan
    for x in (gaps, torch.full_like(gaps, torch.nan), gaps[:1], gaps[1:2]):
        for training in (True, False):
            tokens = model.train(training)(x)
            assert tokens.shape == (len(x), NUM_PATCHES, HIDDEN_DIM)
            assert tokens.isfinite().all()
    model.fit(gaps)
    assert model(gaps).isfinite().all()
    model.fit(torch.full_like(gaps, torch.nan))
    assert model(gaps).isfinite().all()


@torch.no_grad()
def assert_rows_are_independent(model: Encoder, modality: Modality) -> None:
    """Evaluation gives a row the same tokens alone, among others and in another order."""
    x = values(modality, 7, missing_rate=0.2)
    together = model.eval()(x)
    torch.testing.assert_close(model(x.flip(0)).flip(0), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), together, rtol=0, atol=1e-6)


def assert_every_parameter_learns(model: Encoder, modality: Modality) -> None:
    """A training step has a gradient, not zero, with respect to every parameter that is not frozen, and no NaN."""
    target = torch.randn(16, NUM_PATCHES, HIDDEN_DIM, generator=torch.Generator().manual_seed(2))
    (model.train()(values(modality, 16, missing_rate=0.1)) - target).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in gradients.items() if grad is None or not grad.abs().sum() > 0] == []


def assert_fitted_on_training_rows(model: Encoder, modality: Modality) -> None:
    """After `fit`, the answer does not depend on the unit the values were measured in."""
    x = values(modality, 40)
    model.fit(x)
    before = model.eval()(x).detach()
    model.fit(1000 * x + 7)
    torch.testing.assert_close(model(1000 * x + 7), before, rtol=0, atol=1e-4)


def assert_exports(model: Encoder, modality: Modality) -> None:
    """As a graph it answers like torch at every batch size, with missing values and a missing last row."""

    def rows(size: int) -> Tensor:
        x = values(modality, size, missing_rate=0.3, seed=size)
        x[-1] = torch.nan
        return x

    assert_same_graph(model, rows)


def assert_refused(kind: str, modality: Modality, told: str, options: Mapping[str, Any] | None = None) -> None:
    """A recipe that names this encoder for this modality is refused with one line that holds `told`."""
    encoders = {modality.name: {"kind": kind} | dict(options or {}), "default": {"kind": "patch"}}
    config = ModelConfig.model_validate(small_model.TINY | {"encoders": encoders})
    with pytest.raises(RecipeError, match=re.escape(told)) as error:
        build_model(config, FeatureSchema(modalities=(modality, array(2, name="other"))), small_model.TASK)
    assert "\n" not in str(error.value)
