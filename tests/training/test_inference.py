import numpy as np

from tests.training import small_model
from training import inference
from training.inference import predict


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
