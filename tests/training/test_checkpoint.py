import io
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.small_data import recipe
from training.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    load_checkpoint,
    load_document,
    load_tensors,
    save_atomically,
    save_checkpoint,
)
from training.errors import RunError
from training.inference import predict
from training.model.build import build_model


class Evil:
    """Runs a command of its own when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/i2moe_was_here").touch, ())


def rows(checkpoint: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {m.name: generator.integers(0, 2, (5, m.width)).astype(np.float32) for m in checkpoint.schema.modalities}


def test_a_checkpoint_rebuilds_itself(rich_run: Path, tmp_path: Path) -> None:
    """Saved and loaded again: the same answers bit for bit, the same recipe, schema, task and provenance."""
    first = load_checkpoint(rich_run)
    save_checkpoint(first, tmp_path)
    again = load_checkpoint(tmp_path)
    wanted, found = (predict(c.model, c.schema, rows(first)) for c in (first, again))
    np.testing.assert_array_equal(wanted.prediction, found.prediction)
    assert (first.recipe, first.task, first.provenance) == (again.recipe, again.task, again.provenance)
    assert first.schema.model_dump() == again.schema.model_dump()
    assert not again.model.training


def test_a_checkpoint_holds_no_pickled_objects(small_run: Path) -> None:
    """The file opens with weights_only and tells its format."""
    document = torch.load(small_run / CHECKPOINT_FILE, weights_only=True)
    assert document["format"] == 1
    assert {"weights", "recipe", "schema", "task", "provenance"} < set(document)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A pickle that calls a function is refused before it is called."""
    marker = Path("/tmp/i2moe_was_here")
    marker.unlink(missing_ok=True)
    torch.save({"format": 1, "weights": Evil()}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(RunError, match=r"checkpoint.pt: is damaged or not a checkpoint \(UnpicklingError\)"):
        load_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_FILE).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RunError, match="is damaged or not a checkpoint"):
        load_checkpoint(tmp_path)
    assert not marker.exists()


def test_damaged_files_are_one_line(small_run: Path, tmp_path: Path) -> None:
    """Cut short anywhere, overwritten anywhere or not a checkpoint at all: always a RunError of one line."""
    whole = (small_run / CHECKPOINT_FILE).read_bytes()
    path, chance = tmp_path / "x.pt", random.Random(0)
    damaged = [b"", b"PK", b"hello, world", whole[:100], whole[: len(whole) // 2], whole[:-30], bytes(1000)]
    damaged += [chance.randbytes(200) for _ in range(100)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"x.pt: ") as error:
            load_document(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("document", "told"),
    [({"format": 2}, "expected checkpoint format 1, found 2"), ({}, "expected checkpoint format 1, found None"),
     ([1, 2], "expected checkpoint format 1, found 'list'")],
)  # fmt: skip
def test_another_format_is_told(tmp_path: Path, document: Any, told: str) -> None:
    """The message has both format numbers."""
    torch.save(document, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(RunError, match=told):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("key", ["weights", "recipe", "schema", "task", "provenance"])
@pytest.mark.parametrize("how", ["absent", "wrong"])
def test_a_checkpoint_that_lacks_a_part_is_told(small_run: Path, tmp_path: Path, key: str, how: str) -> None:
    """Absent or senseless parts are one line, whichever part it is."""
    document = load_document(small_run / CHECKPOINT_FILE)
    if how == "absent":
        del document[key]
    else:
        document[key] = {"nothing": "of use"}
    save_atomically(document, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(RunError, match=r"checkpoint.pt: does not rebuild a model: ") as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    """No such file, and a folder in its place."""
    with pytest.raises(RunError, match="no such file"):
        load_tensors(tmp_path / "x.pt")
    with pytest.raises(RunError, match="is damaged or not a checkpoint"):
        load_tensors(tmp_path)


class Unwritable:
    """Fails in the middle of being saved."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise OSError("No space left on device")


def test_a_failing_save_leaves_the_old_file(small_run: Path, tmp_path: Path) -> None:
    """After an error while writing, the file is the one before and nothing else lies beside it."""
    path = Path(shutil.copy(small_run / CHECKPOINT_FILE, tmp_path))
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        save_atomically({"weights": torch.zeros(1000), "bad": Unwritable()}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_is_whole(tmp_path: Path) -> None:
    """What is saved is what torch.save writes, under its own name alone."""
    save_atomically({"x": torch.arange(3)}, tmp_path / "x.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    assert torch.equal(torch.load(io.BytesIO((tmp_path / "x.pt").read_bytes()), weights_only=True)["x"], torch.arange(3))


def test_a_model_larger_than_its_weights_is_never_built(small_run: Path, tmp_path: Path) -> None:
    """Sizes are compared before memory is taken: this one would need terabytes."""
    document = load_document(small_run / CHECKPOINT_FILE)
    document["recipe"]["model"]["hidden_dim"] = 1 << 22
    save_atomically(document, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(RunError, match=r"weights .*: expected shape \(.*4194304.*\), found \("):
        load_checkpoint(tmp_path)


def test_a_format_that_is_no_number_is_told(tmp_path: Path) -> None:
    """Not even compared: a tensor has no one answer to that."""
    torch.save({"format": torch.ones(2)}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(RunError, match="expected checkpoint format 1, found tensor"):
        load_checkpoint(tmp_path)


def test_a_model_that_looks_at_its_numbers_is_loaded(small_run: Path, tmp_path: Path) -> None:
    """An encoder that compares tensors while it is built cannot be described without memory; it is built all the same."""
    given, changed = load_checkpoint(small_run), recipe({"model.encoders": {"default": {"kind": "mlp"}}})
    model = build_model(changed.model, given.schema, given.task)
    save_checkpoint(Checkpoint(model, changed, given.schema, given.task, given.provenance), tmp_path)
    loaded = load_checkpoint(tmp_path).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
