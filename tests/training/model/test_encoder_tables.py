"""All encoders in one model, built from a recipe's tables."""

from typing import Any

import torch

from service.bundle.schema import FeatureSchema
from tests.training import small_model
from tests.training.model import encoder_cases as cases
from training.model.build import ModelConfig, build_model, fit_encoders
from training.model.mixture import I2MoE

MODALITIES = (
    cases.TABULAR,
    cases.array(5, 3, name="sequence"),
    cases.array(4, 5, 6, name="volume"),
    cases.array(3, 9, 9, name="image"),
    cases.array(7, name="vector"),
)
ENCODER_TABLES: dict[str, dict[str, Any]] = {
    "mixed": {"kind": "mlp", "hidden": 6},
    "sequence": {"kind": "gru", "hidden": 6, "missing_flags": True},
    "volume": {"kind": "cnn3d", "channels": [2, 3, 4]},
    "image": {"kind": "cnn2d", "hidden": 6},
    "vector": {"kind": "maxout", "hidden": [6, 5]},
}


def built(tables: dict[str, dict[str, Any]]) -> I2MoE:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(small_model.TINY | {"encoders": tables})
    model = build_model(config, FeatureSchema(modalities=MODALITIES), small_model.TASK)
    fit_encoders(model, [cases.values(modality, 20, missing_rate=0.1) for modality in MODALITIES])
    return model


def test_one_model_reads_every_kind_of_modality() -> None:
    """Tables, sequences, volumes, images and vectors side by side: a training step, then finite answers, whatever is missing."""
    model = built(ENCODER_TABLES)
    inputs = [cases.values(modality, 6, missing_rate=0.2) for modality in MODALITIES]
    for row, x in enumerate(inputs):
        x[row] = torch.nan
    model.train()(inputs).logits_BC.sum().backward()
    gradients = [p.grad for p in model.encoders.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
    assert model.eval()(inputs).prediction_BC.isfinite().all()


def test_weights_are_enough_to_rebuild_it() -> None:
    """A fresh model with the state dict of another, statistics included, answers the same without being fitted."""
    model = built(ENCODER_TABLES).eval()
    config = ModelConfig.model_validate(small_model.TINY | {"encoders": ENCODER_TABLES})
    again = build_model(config, FeatureSchema(modalities=MODALITIES), small_model.TASK)
    again.load_state_dict(model.state_dict())
    inputs = [cases.values(modality, 4, missing_rate=0.2, seed=3) for modality in MODALITIES]
    torch.testing.assert_close(again.eval()(inputs).logits_BC, model(inputs).logits_BC, rtol=0, atol=0)
