import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.data.hostile import HOSTILE, runs
from training.data import mosi
from training.data.pickles import read_pickle
from training.errors import DataError

SIZES = {"train": 5, "valid": 2, "test": 3}


def document() -> dict[str, dict[str, Any]]:
    """The released layout with few rows; ids are three parts in bytes, scores run from -3 to 3."""
    generator, number, parts = np.random.default_rng(0), 0, {}
    for split, size in SIZES.items():
        parts[split] = {name: generator.normal(size=(size, *shape)).astype(np.float32) for name, shape in mosi.SHAPES.items()}
        parts[split]["labels"] = np.linspace(-3, 3, size, dtype=np.float32).reshape(size, 1, 1)
        parts[split]["id"] = np.array([[f"v{number + i}".encode(), b"0.5", b"1.5"] for i in range(size)])
        number += size
    return parts


def write(folder: Path, content: object, protocol: int = 4) -> Path:
    (folder / mosi.FILE).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", range(6))
def test_the_released_layout_is_read_in_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    """Vision, audio, text in that order; splits as in the file, ids joined, scores and signs as labels, no notes."""
    content = document()
    data = mosi.read(write(tmp_path, content, protocol))
    assert tuple(data.arrays) == mosi.MODALITIES == ("vision", "audio", "text")
    for name, array in data.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in content.values()]))
    assert data.frame["id"].to_list() == [f"v{i}0.51.5" for i in range(10)]
    assert data.frame["split"].to_list() == ["train"] * 5 + ["validation"] * 2 + ["test"] * 3
    assert data.frame["sentiment"].to_list() == [-3, -1.5, 0, 1.5, 3, -3, 3, -3, 0, 3]
    assert data.frame["positive"].to_list() == [0, 0, 0, 1, 1, 0, 1, 0, 0, 1]
    assert data.notes == ()


def test_rows_without_text_are_dropped_and_told(tmp_path: Path) -> None:
    """A row whose text is all zeros leaves every array and the frame; one that lacks text as NaN stays."""
    content = document()
    content["train"]["text"][1] = 0
    content["test"]["text"][0] = np.nan
    data = mosi.read(write(tmp_path, content))
    assert data.notes == ("1 of 10 rows dropped: their text is all zeros",)
    assert [len(array) for array in data.arrays.values()] == [9, 9, 9]
    assert "v10.51.5" not in data.frame["id"].to_list()
    assert np.isnan(data.arrays["text"][data.frame["id"].to_list().index("v70.51.5")]).all()
    np.testing.assert_array_equal(data.arrays["vision"][1], content["train"]["vision"][2])


def test_missing_stays_missing_and_infinity_becomes_so(tmp_path: Path) -> None:
    """NaN is kept for the encoders, and an infinite feature is read as missing with a note."""
    content = document()
    content["train"]["audio"][0, 0] = np.nan
    content["valid"]["audio"][1, 2, 3] = -np.inf
    data = mosi.read(write(tmp_path, content))
    assert np.isnan(data.arrays["audio"][0, 0]).all()
    assert np.isnan(data.arrays["audio"][6, 2, 3])
    assert np.isnan(data.arrays["audio"]).sum() == 6
    assert data.notes == ("audio: 1 of 2500 values read as missing: they are infinite",)


def objects(items: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), object)
    for place, item in enumerate(items):
        array[place] = item
    return array


SPELLINGS: dict[str, Callable[[int], Any]] = {
    "text": lambda n: np.array([f"clip{i}" for i in range(n)]),
    "bytes": lambda n: np.array([f"clip{i}".encode() for i in range(n)]),
    "objects": lambda n: np.array([f"clip{i}" for i in range(n)], object),
    "list": lambda n: [f"clip{i}" for i in range(n)],
    "arrays in an array": lambda n: objects([np.array(["clip", str(i)]) for i in range(n)]),
    "lists in an array": lambda n: objects([["clip", i] for i in range(n)]),
    "parts": lambda n: [[b"clip", np.int64(i)] for i in range(n)],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ids_come_in_many_spellings(tmp_path: Path, spelling: str) -> None:
    """Text or bytes, whole or in parts, in an array or a list: one text per row."""
    content = document()
    every = SPELLINGS[spelling](10)
    for split, rows in zip(content, (slice(0, 5), slice(5, 7), slice(7, 10)), strict=True):
        content[split]["id"] = every[rows]
    assert mosi.read(write(tmp_path, content)).frame["id"].to_list() == [f"clip{i}" for i in range(10)]


def test_a_file_written_by_python_2_is_read(tmp_path: Path) -> None:
    """Array contents that Python 2 wrote as text are the same bytes."""
    old = pickle.dumps(document(), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / mosi.FILE).write_bytes(old)
    assert mosi.read(tmp_path).frame.height == 10
    part = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
    part += b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb."
    (tmp_path / "array.pkl").write_bytes(part)
    assert read_pickle(tmp_path / "array.pkl").tolist() == [1.0, -2.0]


def test_another_width_is_read_with_a_note(tmp_path: Path) -> None:
    """MultiBench's raw file has other features: usable, and said not to be the paper's."""
    content = document()
    for part in content.values():
        part["vision"] = np.zeros((len(part["vision"]), 50, 35))
    data = mosi.read(write(tmp_path, content))
    assert data.arrays["vision"].shape == (10, 50, 35)
    assert data.notes == ("vision: (50, 35) per row where the paper's file has (50, 20); results are not comparable",)


def without(content: dict[str, Any], split: str, name: str) -> dict[str, Any]:
    del content[split][name]
    return content


def changed(content: dict[str, Any], split: str, name: str, value: Callable[[Any], Any]) -> dict[str, Any]:
    content[split][name] = value(content[split][name])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected dicts under train, valid, test, found list"),
        ({"train": {}, "dev": {}}, "expected dicts under train, valid, test, found train, dev"),
        (without(document(), "valid", "audio"), "valid: expected arrays .*, found no audio"),
        (
            changed(document(), "test", "labels", lambda x: x[:2]),
            r"test.labels: expected .* shape \(3, 1, 1\), found .*\(2, 1, 1\)",
        ),
        (changed(document(), "test", "vision", lambda x: x[:, 0]), r"test.vision: expected .*\(3, any, any\), found .*\(3, 20\)"),
        (changed(document(), "test", "text", lambda x: x[:1]), r"test.text: expected .*\(3, any, any\), found .*\(1, 50, 300\)"),
        (changed(document(), "test", "text", lambda x: x.astype(str)), "test.text: expected numbers"),
        (changed(document(), "test", "text", lambda x: x[..., :9]), "expected text of one shape .*9.*300"),
        (changed(document(), "train", "labels", lambda x: x * 2), "expected labels from -3 to 3, found 2 of 10 outside or NaN"),
        (changed(document(), "train", "labels", lambda x: x * np.nan), "found 5 of 10 outside or NaN"),
        (
            changed(document(), "valid", "text", lambda x: x * 0),
            "expected rows with text in every split, found none in validation",
        ),
        (
            changed(document(), "train", "id", lambda x: x[[0, 1, 2, 3, 3]]),
            r"every id once, found 1 of them more often \(first: v3",
        ),
        (changed(document(), "test", "id", lambda x: np.array(["", "a", "b"])), "an id in every row, found 1 of 10"),
    ],
)
def test_another_content_is_refused_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    """What is missing, has another shape, repeats an id or lies outside the scale is told with the figures."""
    with pytest.raises(DataError, match=message) as error:
        mosi.read(write(tmp_path, content))
    assert str(tmp_path / mosi.FILE) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """The path that was tried is in the message."""
    with pytest.raises(DataError, match=r"mosi_data\.pkl: no such file"):
        mosi.read(tmp_path)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("place", ["top", "in a dict", "in an array"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, hostile: Any, place: str, protocol: int) -> None:
    """A pickle that would create a file when loaded is refused, and the file is not there."""
    marker = tmp_path / "ran"
    bomb, content = hostile(marker), document()
    content["train"]["id"] = np.array([bomb] * 5, object) if place == "in an array" else bomb
    write(tmp_path, bomb if place == "top" else content, protocol)
    with pytest.raises(
        DataError, match=r"nothing in it was run\), found: names (builtins\.eval|__builtin__\.eval|posix\.system)"
    ):
        mosi.read(tmp_path)
    assert not marker.exists()
    assert runs(tmp_path / mosi.FILE, marker)  # so it was malicious


@pytest.mark.parametrize(
    "content",
    [
        {1, 2},
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(2, [("a", "f4"), ("b", "O")]),
        complex(1, 2),
        np.random.default_rng(0),
        Path("x"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, content: object) -> None:
    """Sets, dates, structured arrays and objects of any class are not data of these files."""
    with pytest.raises(DataError, match=r"expected a pickle of dicts.*found: (holds|names)"):
        mosi.read(write(tmp_path, {"train": {"vision": content}}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps(document())[:-100],
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",  # a bare type
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nN(S'a'\ntNI-1\nI-1\nI0\ntb.",  # a type with named parts
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI00\nS'abcdefgh'\ntb.",
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",  # another codec
        b"(lp0\ng0\na.",  # a list that holds itself
        b"P1\n.",  # something outside the file
    ],
)
def test_damaged_and_forged_pickles_are_one_line(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, the answer is one line naming the file, or text that is no data set."""
    (tmp_path / mosi.FILE).write_bytes(content)
    with pytest.raises(DataError, match=mosi.FILE) as error:
        mosi.read(tmp_path)
    assert "\n" not in str(error.value)


def test_padding_in_front_is_moved_behind(tmp_path: Path) -> None:
    """A sequence begins with its first word in every modality, aligned as it was; nothing else moves."""
    content = document()
    for name in mosi.MODALITIES:
        content["train"][name][2, :30] = 0
    content["train"]["vision"][2, 30] = 0  # silent, but not padding: there is a word
    data = mosi.read(write(tmp_path, content))
    for name, array in data.arrays.items():
        np.testing.assert_array_equal(array[2, :20], content["train"][name][2, 30:])
        assert (array[2, 20:] == 0).all()
        np.testing.assert_array_equal(array[3], content["train"][name][3])


def test_lists_of_one_list_take_no_longer_than_it(tmp_path: Path) -> None:
    """Ten times ten times ... of one list, forty times over, are a file of some hundred bytes and not of ages."""
    content: list[Any] = ["x"]
    for _ in range(40):
        content = [content] * 10
    path = tmp_path / "many.pkl"
    path.write_bytes(pickle.dumps(content))
    assert path.stat().st_size < 2000
    found = read_pickle(path)
    assert all(inner is found[0] for inner in found)
