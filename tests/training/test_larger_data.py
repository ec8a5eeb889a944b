"""Data that do not fit into memory train the same model, a bounded number of rows at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from tests.training.small_data import ALL_MODALITIES, document, recipe, to_toml, write_data
from training.checkpoint import load_checkpoint
from training.data import fit as fitting
from training.data import rows
from training.data.rows import LazyRows, NpyRows
from training.run import fit

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_is_the_same_from_file_and_from_memory(tmp_path: Path, workers: int) -> None:
    """With all its noise: the same weights, metrics, example and reference, to the last bit."""
    write_data(tmp_path)
    for name, megabytes in (("memory", 1), ("file", 0)):
        changes = {"data.in_memory_mb": megabytes, "train.workers": workers, "train.num_bootstraps": 0, "train.epochs": 1}
        fit(recipe(changes, modalities=ALL_MODALITIES), tmp_path, tmp_path / name)
    weights, others = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("memory", "file"))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("memory", "file"))
    for run in (one, other):
        del run["provenance"]
    assert one == other


def test_no_more_rows_are_read_than_a_batch_or_part_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From loading to the report, no read asks for more rows than the largest batch."""
    largest = 8
    asked: list[int] = []

    class Counting(LazyRows):
        def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
            self.source = NpyRows(path, shape)

        @property
        def shape(self) -> tuple[int, ...]:
            return self.source.shape

        def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[Any]:
            asked.append(len(rows))
            return self.source[rows]

    write_data(tmp_path)
    monkeypatch.setattr(fitting, "NpyRows", Counting)
    monkeypatch.setattr(rows, "_CELLS_AT_ONCE", largest * 6)
    monkeypatch.setattr("training.inference._BATCH_SIZE", largest)
    monkeypatch.setattr("training.model.encoders.arrays._ROWS_AT_ONCE", largest)
    changes = {"data.in_memory_mb": 0, "train.batch_size": largest, "train.num_bootstraps": 0, "train.epochs": 1,
               "model.encoders": {"default": {"kind": "patch"}}}  # fmt: skip
    fit(recipe(changes, modalities=ALL_MODALITIES), tmp_path, tmp_path / "run")
    assert sum(asked) > 5 * 120
    assert max(asked) <= largest


# Trains, and watches how much memory of its own the process holds; pages of mapped files are the system's to take back.
WATCHED = """
import os, sys, threading, time
from training.__main__ import main

peak_pages, done = 0, False

def watch():
    global peak_pages
    while not done:
        resident, shared = open("/proc/self/statm").read().split()[1:3]
        peak_pages = max(peak_pages, int(resident) - int(shared))
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
status = main(sys.argv[1:])
done = True
watcher.join()
print(peak_pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
sys.exit(status)
"""


def peak_memory_mb(folder: Path, num_rows: int) -> float:
    """The most memory (MiB) of a process that trains on so many images of 12 kB for an epoch."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    pl.DataFrame({"outcome": np.arange(num_rows) % 2, "age": generator.normal(size=num_rows)}).write_csv(folder / "table.csv")
    images = np.lib.format.open_memmap(folder / "image.npy", "w+", np.float32, (num_rows, 3, 32, 32))
    for start in range(0, num_rows, 1000):
        images[start : start + 1000] = generator.random((min(1000, num_rows - start), 3, 32, 32), np.float32)
    changes = {"data.in_memory_mb": 0, "train.epochs": 1, "train.batch_size": 256, "train.num_bootstraps": 0,
               "model.encoders": {"default": {"kind": "mlp"}}}  # fmt: skip
    modalities = {"person": {"numeric": ["age"]}, "image": {"array": "image.npy"}}
    (folder / "recipe.toml").write_text(to_toml(document(changes, modalities=modalities)))
    command = [sys.executable, "-c", WATCHED, "fit", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to tell a process's own memory")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """10,000 more images, 117 MiB of them, take less than half of that; what grows at all is the allocator's slack."""
    few, many = peak_memory_mb(tmp_path / "few", 6000), peak_memory_mb(tmp_path / "many", 16000)
    assert many - few < 58
