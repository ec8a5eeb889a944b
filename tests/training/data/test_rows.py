import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import rows as module
from training.data.rows import AlignedRows, FiniteRows, NpyRows, absent_rows, kept_in_memory, map_npy, parts, take, whole
from training.errors import DataError

ARRAY = np.arange(24, dtype=np.float64).reshape(6, 2, 2)


def saved(folder: Path, array: np.ndarray[Any, Any] = ARRAY) -> NpyRows:
    np.save(folder / "array.npy", array)
    return NpyRows(folder / "array.npy", array.shape)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """As numpy's own indexing gives them, repeated or not, also in another process."""
    lazy = pickle.loads(pickle.dumps(saved(tmp_path)))
    wanted = np.array([4, 0, 4])
    np.testing.assert_array_equal(lazy[wanted], ARRAY[wanted])
    np.testing.assert_array_equal(lazy.take(wanted)[np.array([1, 2])], ARRAY[[0, 4]])
    assert (len(lazy), lazy.shape, lazy.take(wanted).shape) == (6, (6, 2, 2), (3, 2, 2))
    np.testing.assert_array_equal(whole(lazy), ARRAY)


def test_taking_copies_from_memory_and_reads_no_file(tmp_path: Path) -> None:
    """Rows in memory are rows in memory; lazy ones stay lazy, even when the file is gone."""
    assert isinstance(take(ARRAY, np.array([1])), np.ndarray)
    lazy = saved(tmp_path)
    lazy.path.unlink()
    taken = take(take(lazy, np.array([5, 3])), np.array([1]))
    assert taken.shape == (1, 2, 2)
    with pytest.raises(DataError, match=r"array\.npy: cannot be read as a \.npy array"):
        whole(taken)


def test_parts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in order, at most so many cells at a time, one row at least."""
    for cells, sizes in ((9, [2, 2, 2]), (1, [1] * 6), (20, [5, 1]), (1000, [6])):
        monkeypatch.setattr(module, "_CELLS_AT_ONCE", cells)
        found = list(parts(saved(tmp_path)))
        assert [len(part) for part in found] == sizes
        np.testing.assert_array_equal(np.concatenate(found), ARRAY)


def test_rows_without_a_value_are_absent(tmp_path: Path) -> None:
    """A row of NaN throughout, or none at all; a gap alone is not one."""
    array = ARRAY.copy()
    array[2], array[3, 0, 0] = np.nan, np.nan
    lazy = saved(tmp_path, array)
    assert absent_rows(array).tolist() == absent_rows(lazy).tolist() == [False, False, True, False, False, False]
    aligned = AlignedRows(lazy, np.array([2, -1, 0]))
    assert absent_rows(aligned).tolist() == [True, True, False]
    np.testing.assert_array_equal(whole(aligned), [*[np.full((2, 2), np.nan)] * 2, ARRAY[0]])


def test_infinity_reads_as_missing(tmp_path: Path) -> None:
    """Infinite numbers, and those that float32 cannot hold, become NaN; all come as float32."""
    array = ARRAY.copy()
    array[0, 0] = np.inf, 1e300
    found = whole(FiniteRows(saved(tmp_path, array)))
    assert found.dtype == np.float32
    assert np.isnan(found).sum() == 2


def test_small_arrays_are_read_at_once(tmp_path: Path) -> None:
    """24 cells take 96 bytes as float32: with that allowance they are in memory, with less they stay in the file."""
    assert isinstance(kept_in_memory(saved(tmp_path), 96), np.ndarray)
    assert isinstance(kept_in_memory(saved(tmp_path), 95), NpyRows)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """One line naming the file."""
    (tmp_path / "array.npy").write_bytes(b"pictures")
    with pytest.raises(DataError, match=r"array\.npy: cannot be read as a \.npy array"):
        map_npy(tmp_path / "array.npy")
