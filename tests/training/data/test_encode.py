from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.small_data import ALL_MODALITIES, TWO_MODALITIES, recipe, records, small_signal, write_data
from training.data import rows
from training.data.dataset import Dataset, load_dataset
from training.data.encode import EncodedRows, values_in_memory
from training.data.rows import absent_rows, take, whole
from training.errors import DataError

MIXED: dict[str, Any] = TWO_MODALITIES | {
    "signal": {"numeric": ["sod"], "categorical": ["ward"], "array": "signal.npy"},
    "labs": {"numeric": ["crea"]},
}


def load(folder: Path, modalities: dict[str, Any] = ALL_MODALITIES, *, in_memory_mb: int = 0) -> Dataset:
    return load_dataset(recipe({"data.in_memory_mb": in_memory_mb}, modalities=modalities).data, folder, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8"])
def test_lazy_rows_are_what_the_schema_encodes(tmp_path: Path, dtype: str) -> None:
    """Cell for cell what a client's record becomes, whatever numbers the file holds."""
    write_data(tmp_path)
    signal = np.nan_to_num(small_signal().astype(np.float64)) * (1 if dtype == "int8" else 123456789.123)
    np.save(tmp_path / "signal.npy", signal.astype(dtype))
    dataset = load(tmp_path)
    lazy = dataset.arrays["signal"]
    assert isinstance(lazy, EncodedRows)
    wanted = dataset.schema.encode_many(records(tmp_path, dataset.schema))["signal"]
    assert (lazy.shape, lazy[np.array([3])].dtype) == (wanted.shape, np.float32)
    np.testing.assert_array_equal(whole(lazy), wanted)


@pytest.mark.parametrize("cells", [1 << 22, 50])
def test_lazy_rows_are_those_of_memory(tmp_path: Path, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or beside table columns, in one part or many, with their gaps: the same columns and the same schema."""
    write_data(tmp_path)
    monkeypatch.setattr(rows, "_CELLS_AT_ONCE", cells)
    memory, lazy = load(tmp_path, MIXED, in_memory_mb=1), load(tmp_path, MIXED)
    assert memory.schema == lazy.schema
    for name, array in memory.arrays.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(whole(lazy.arrays[name]), array)
        some = np.array([7, 3, 99])
        np.testing.assert_array_equal(whole(take(lazy.arrays[name], some)), array[some])
        np.testing.assert_array_equal(absent_rows(lazy.arrays[name]), absent_rows(array))
        known = values_in_memory(lazy.arrays[name])
        np.testing.assert_array_equal(known, array[:, : known.shape[1]])
    assert values_in_memory(lazy.arrays["signal"]).shape == (120, 3)  # sod, ward and the first cell


def test_what_does_not_fit_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity in a file that is not held is found while loading, and named by its row."""
    signal = small_signal()
    signal[101, 1, 2] = np.inf
    np.save(write_data(tmp_path) / "signal.npy", signal)
    monkeypatch.setattr(rows, "_CELLS_AT_ONCE", 50)
    with pytest.raises(DataError, match=r"row 102: signal\.signal: must hold finite numbers"):
        load(tmp_path)
