import numpy as np
import pytest
import torch

from tests.training import small_model
from training import inference
from training.inference import answers, predict


def test_wide_rows_go_through_a_few_at_a_time() -> None:
    """However few rows fit into one batch's cells, the answers are those of one large batch."""
    model, schema = small_model.model(), small_model.schema()
    arrays = {name: x.numpy() for name, x in zip(schema.names, small_model.rows(9), strict=True)}
    whole = predict(model, schema, arrays)
    before = inference._MAX_CELLS
    inference._MAX_CELLS = 2 * sum(modality.width for modality in schema.modalities)
    try:
        parts = predict(model, schema, arrays)
    finally:
        inference._MAX_CELLS = before
    np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-6)


def test_the_model_stays_in_its_mode() -> None:
    """Scoring in the middle of training leaves the model training."""
    model, schema = small_model.model(), small_model.schema()
    arrays = {name: x.numpy() for name, x in zip(schema.names, small_model.rows(3), strict=True)}
    model.train()
    predict(model, schema, arrays)
    assert model.training


def test_answers_of_batches_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are the last axis but one, however many batches there were; the module answers in evaluation mode."""
    model, schema, inputs = small_model.model({"dropout": 0.5}), small_model.schema(), small_model.rows(9)
    arrays = {name: x.numpy() for name, x in zip(schema.names, inputs, strict=True)}
    wanted = model.run_experts(model.embed(inputs)).logits
    monkeypatch.setattr(inference, "_BATCH_SIZE", 4)
    model.train()
    logits, tokens = answers(model, lambda x: (model.run_experts(model.embed(x)).logits, x[1]), schema, arrays)
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens, inputs[1])
    assert model.training
    assert not logits.requires_grad
