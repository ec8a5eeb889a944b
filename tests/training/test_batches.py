from pathlib import Path

import numpy as np
import pytest
import torch

from training import distributed
from training.batches import Batches, micro_batches
from training.data.rows import NpyRows


def pieces(num_rows: int, num_pieces: int) -> list[list[int]]:
    return [batch.rows.tolist() for batch in micro_batches(torch.arange(num_rows), num_pieces)]


def test_alone_a_step_is_cut_into_nearly_equal_pieces() -> None:
    """In order, none empty, and one piece is the step itself."""
    assert pieces(5, 1) == [[0, 1, 2, 3, 4]]
    assert pieces(5, 2) == [[0, 1, 2], [3, 4]]
    assert pieces(2, 4) == [[0], [1]]


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8])
def test_processes_divide_a_step_and_all_take_part(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row counts in one process; a process without rows goes through one that does not count."""
    monkeypatch.setattr(distributed, "num_processes", lambda: 3)
    counted = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = micro_batches(torch.arange(num_rows), 2)
        assert own
        counted += [row for batch in own if batch.counts for row in batch.rows.tolist()]
        assert all(len(batch.rows) and len(batch.step_rows) == num_rows for batch in own)
    assert counted == list(range(num_rows))


@pytest.mark.parametrize("workers", [0, 2])
def test_lazy_batches_are_those_of_memory(tmp_path: Path, workers: int) -> None:
    """In the arrays' order and the batches', read here or by others; the noise of training does not notice."""
    first, second, third = np.random.default_rng(0).normal(size=(3, 20, 4)).astype(np.float32)
    np.save(tmp_path / "second.npy", second)
    lazy = NpyRows(tmp_path / "second.npy", second.shape)
    torch.manual_seed(0)
    rows = list(torch.randperm(20).split(6))
    before = torch.get_rng_state()
    found = list(Batches([first, lazy, third], torch.device("cpu"), workers=workers)(rows))
    wanted = list(Batches([first, second, third], torch.device("cpu"), workers=0)(rows))
    assert torch.equal(before, torch.get_rng_state())
    assert [len(batch[0]) for batch in found] == [6, 6, 6, 2]
    for some, others in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
