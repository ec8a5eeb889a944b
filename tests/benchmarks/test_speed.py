"""The speed benchmarks' own arithmetic: the reference work, rounds that alternate, figures of several rounds, absent peers."""

import json
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from benchmarks import graph, growth, reference, training_step
from benchmarks.released import ENVIRONMENT, released_folder
from benchmarks.serving import __main__ as serving
from benchmarks.serving import stages
from benchmarks.serving.bodies import Records, write_bodies


def test_the_reference_is_the_released_shape() -> None:
    """The sizes of the released MIMIC-IV script, as a recipe and as rows."""
    recipe = reference.recipe(reference.Shape(), {"batch_size": 32})
    assert (recipe.model.hidden_dim, recipe.model.num_patches, recipe.model.num_layers, recipe.model.num_heads) == (128, 4, 2, 4)
    assert (recipe.model.reweighting.hidden_dim, recipe.model.reweighting.num_layers) == (256, 3)
    data = reference.dataset(reference.Shape(), 5)
    assert [array.shape for array in data.arrays.values()] == [(5, 256), (5, 768), (5, 512)]
    assert [len(rows) for rows in data.splits.values()] == [5, 5, 5]


def test_operations_by_hand() -> None:
    """One modality of 3 columns, 2 hidden, 1 patch, 1 layer, no hidden layer of weights: 3 experts and the encoder."""
    shape = reference.Shape(
        columns=(3,), hidden_dim=2, num_patches=1, num_layers=1, num_labels=2, reweighting_hidden=9, reweighting_layers=1
    )
    expert = 8 * 2 * 2 + 2 * 2 + 2 * 2
    assert graph.flops(shape) == 2 * (3 * 2 + 3 * expert + 2 * 3)


def test_a_copy_of_the_released_code_is_found_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the environment, and only if it is one."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert released_folder() is None
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert released_folder() is None
    (tmp_path / "src" / "imoe").mkdir(parents=True)
    assert released_folder() == tmp_path


def test_rounds_alternate_and_the_first_is_not_told() -> None:
    """All in turn, one time each round; the warm-up is left out."""
    order: list[str] = []
    told = training_step.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, num_steps=1)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in told.items()} == {"a": 2, "b": 2}


def test_the_body_is_one_record_of_the_reference(tmp_path: Path) -> None:
    """About 13 kB of numbers, one list per modality; or the same numbers in 6 kB of bytes, after as much JSON as is said."""
    plain_body, binary_body = write_bodies(tmp_path, Records.of_reference())
    plain, binary = plain_body.path.read_bytes(), binary_body.path.read_bytes()
    (record,) = json.loads(plain)["instances"]
    assert {name: len(values) for name, values in record.items()} == {"lab": 256, "note": 768, "code": 512}
    assert 12_000 < len(plain) < 14_000
    length = int(binary_body.json_bytes or "")
    assert [tensor["name"] for tensor in json.loads(binary[:length])["inputs"]] == list(record)
    numbers = np.frombuffer(binary[length:], "<f4")
    np.testing.assert_allclose(numbers, [*chain.from_iterable(record.values())], rtol=1e-4)


def test_more_modalities_are_named_and_their_widths_begin_again() -> None:
    """The reference is the case of three; every other has as many names as widths, all distinct."""
    assert growth.shape_of(3) == reference.Shape()
    shape = growth.shape_of(5)
    assert shape.columns == (256, 768, 512, 256, 768)
    assert shape.names == ("lab", "note", "code", "modality_3", "modality_4")
    assert growth.shape_of(2).names == ("lab", "note")
    assert list(reference.dataset(shape, 2).arrays) == list(shape.names)


def test_the_table_of_growth_by_hand() -> None:
    """Milliseconds as measured, and microseconds a sample at the largest batch."""
    head, _, row = growth.table({3: {1: 0.5, 64: 12.8}}).splitlines()
    assert head.startswith("| modalities | experts | MFLOP a sample | batch 1 | batch 64 |")
    assert row == "| 3 | 5 | 32.9 | 0.50 | 12.80 | 200 |"


def test_figures_are_medians_and_errors_are_added() -> None:
    """An answer that is no 200 in any round stays visible."""
    rounds = [dict.fromkeys(serving.FIELDS, value) | {"errors": errors} for value, errors in ((1.0, 0), (9.0, 2), (2.0, 1))]
    assert serving.median_of(rounds) == {**dict.fromkeys(serving.FIELDS, 2.0), "errors": 3}


def test_the_time_of_a_part_is_per_record() -> None:
    """A part that takes 1 ms for ten records takes about 100 us a record."""
    (told,) = stages.time_parts({"sleep": lambda: time.sleep(0.001)}, rounds=3, num_records=10).values()
    assert 100 <= told < 1000


def test_peers_are_there() -> None:
    """Each in a file of its own beside the others, under a name of its own."""
    modules = [part for peer in serving.PEERS for part in peer.command if part.startswith("benchmarks.")]
    assert len(modules) == len([peer for peer in serving.PEERS if not peer.own_threads])
    for module in modules:
        assert Path(module.partition(":")[0].replace(".", "/")).with_suffix(".py").exists()
    assert len({peer.name for peer in serving.PEERS}) == len(serving.PEERS)
