import pytest
import torch

from service.bundle.schema import Modality
from tests.training.model import encoder_cases as cases
from training.model.encoders import ENCODERS
from training.model.rows import StreamedRows

ARRAYS = {"cnn2d": cases.array(3, 8, 8), "cnn3d": cases.array(4, 5, 6), "gru": cases.array(5, 3)}


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_an_encoder_learns_the_same_from_rows_it_cannot_hold(kind: str) -> None:
    """Statistics of streamed rows equal those of a tensor bit for bit, and no more than 64 rows are read at once."""
    modality: Modality = ARRAYS.get(kind, cases.TABULAR)
    x = cases.values(modality, 150, missing_rate=0.2)
    read: list[int] = []

    def read_rows(start: int, stop: int) -> torch.Tensor:
        read.append(stop - start)
        return x[start:stop]

    whole, streamed = (ENCODERS[kind](modality, num_patches=2, hidden_dim=8, config=ENCODERS[kind].Config()) for _ in range(2))
    whole.fit(x)
    streamed.fit(StreamedRows(len(x), read_rows))
    buffers = dict(whole.named_buffers())
    assert buffers
    for name, buffer in streamed.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=0, atol=0, equal_nan=True)
    if kind != "feature":  # which reads more at once of arrays as narrow as this
        assert max(read) <= 64
