from typing import Any

import numpy as np
import pytest
import torch

from tests.training import small_model
from training.validity.coalitions import coalition_logits

NUM_ROWS = 6
COALITIONS = range(8)


def arrays(*, missing_rate: float) -> dict[str, np.ndarray[Any, Any]]:
    rows = small_model.rows(NUM_ROWS, missing_rate=missing_rate)
    return {name: x.numpy() for name, x in zip(small_model.schema().names, rows, strict=True)}


def test_a_hidden_modality_is_one_that_is_missing() -> None:
    """With learned tokens every coalition's logits are those of rows without the other modalities, none at all included."""
    model, schema, rows = small_model.model(), small_model.schema(), arrays(missing_rate=0.2)
    found = coalition_logits(model, schema, rows, np.array([0]))
    assert found.shape == (8, NUM_ROWS, 2)
    for coalition in COALITIONS:
        inputs = [torch.from_numpy(x if coalition >> i & 1 else np.full_like(x, np.nan)) for i, x in enumerate(rows.values())]
        np.testing.assert_allclose(found[coalition], model(inputs).logits_BC.detach(), atol=1e-5)
    assert len({float(logits[0, 0]) for logits in found}) == 8


def test_a_hidden_modality_is_other_rows_where_none_may_be_missing() -> None:
    """With missing = reject logits are the mean over the rows that stand in; with all modalities shown, the row's own."""
    model, schema, rows = small_model.model(missing="reject"), small_model.schema(missing="reject"), arrays(missing_rate=0)
    background = np.array([1, 4])
    found = coalition_logits(model, schema, rows, background)
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
    coalition_logits(model, small_model.schema(), arrays(missing_rate=0), np.array([0]))
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
