from typing import Any

import numpy as np
import pytest
import torch

from service.bundle.schema import FeatureSchema
from tests.training import small_model
from training.model.mixture import I2MoE
from training.validity.coalitions import coalition_logits, stand_ins
from training.validity.tokens import asking, embed_rows

NUM_ROWS = 6
COALITIONS = range(8)


def arrays(*, missing_rate: float) -> dict[str, np.ndarray[Any, Any]]:
    rows = small_model.rows(NUM_ROWS, missing_rate=missing_rate)
    return {name: x.numpy() for name, x in zip(small_model.schema().names, rows, strict=True)}


def logits(model: I2MoE, schema: FeatureSchema, rows: dict[str, np.ndarray[Any, Any]], background: Any) -> Any:
    """Of every coalition, as `judge` asks for them."""
    with asking(model):
        tokens = embed_rows(model, schema, rows)
        return coalition_logits(model, tokens, stand_ins(model, schema, tokens, np.array(background)))


def test_a_hidden_modality_is_one_that_is_missing() -> None:
    """With learned tokens every coalition's logits are those of rows without the other modalities, none at all included."""
    model, schema, rows = small_model.model(), small_model.schema(), arrays(missing_rate=0.2)
    found = logits(model, schema, rows, [0])
    assert found.shape == (8, NUM_ROWS, 2)
    for coalition in COALITIONS:
        inputs = [torch.from_numpy(x if coalition >> i & 1 else np.full_like(x, np.nan)) for i, x in enumerate(rows.values())]
        np.testing.assert_allclose(found[coalition], model(inputs).logits_BC.detach(), atol=1e-5)
    assert len({float(part[0, 0]) for part in found}) == 8


def test_a_hidden_modality_is_other_rows_where_none_may_be_missing() -> None:
    """With missing = reject logits are the mean over the rows that stand in; with all modalities shown, the row's own."""
    model, schema, rows = small_model.model(missing="reject"), small_model.schema(missing="reject"), arrays(missing_rate=0)
    background = [1, 4]
    found = logits(model, schema, rows, background)
    for coalition in COALITIONS:
        means = []
        for other in background:
            parts = [x if coalition >> i & 1 else np.repeat(x[[other]], NUM_ROWS, axis=0) for i, x in enumerate(rows.values())]
            means.append(model([torch.from_numpy(x) for x in parts]).logits_BC.detach().numpy())
        np.testing.assert_allclose(found[coalition], np.mean(means, axis=0), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    """Its mode, and no gradient."""
    model = small_model.model().train(training)
    logits(model, small_model.schema(), arrays(missing_rate=0), [0])
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_more_rows_than_fit_at_once_are_answered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many go through together, the answers are the same."""
    rows, at_once = arrays(missing_rate=0.2), logits(small_model.model(), small_model.schema(), arrays(missing_rate=0.2), [0])
    monkeypatch.setattr("training.validity.tokens._ROWS_AT_ONCE", 4)
    np.testing.assert_allclose(logits(small_model.model(), small_model.schema(), rows, [0]), at_once, atol=1e-6)
