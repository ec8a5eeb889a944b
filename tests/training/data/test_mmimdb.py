import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from training.data import mmimdb
from training.data.mmimdb import GENRES
from training.data.rows import whole
from training.errors import DataError

NUM_ROWS = 9
SIZES = (4, 2, 3)


def contents(num_rows: int = NUM_ROWS, *, width: int = 4096) -> dict[str, np.ndarray[Any, Any]]:
    """The data sets of the file that the reader uses, and one that it does not."""
    generator = np.random.default_rng(0)
    return {
        "imdb_ids": np.array([f"{88885 + i:07d}".encode() for i in range(num_rows)], "S7"),
        "features": generator.normal(size=(num_rows, 300)).astype(np.float32),
        "vgg_features": generator.normal(size=(num_rows, width)).astype(np.float32),
        "genres": generator.integers(2, size=(num_rows, 23), dtype=np.int32),
        "sequences": np.zeros((num_rows, 1)),
    }


def write(folder: Path, datasets: dict[str, Any] | None = None, target_names: object = GENRES) -> Path:
    with h5py.File(folder / mmimdb.FILE, "w") as file:
        for name, values in (contents() if datasets is None else datasets).items():
            file[name] = values
        if target_names is not None and "genres" in file:
            file["genres"].attrs["target_names"] = json.dumps(target_names)
    return folder


def test_the_released_layout_is_read(tmp_path: Path) -> None:
    """Plot and poster features in the file's order, one 0/1 column per genre, splits by position, no notes."""
    data = mmimdb.read(write(tmp_path), sizes=SIZES)
    assert tuple(data.arrays) == mmimdb.MODALITIES == ("language", "img")
    np.testing.assert_array_equal(whole(data.arrays["language"]), contents()["features"])
    np.testing.assert_array_equal(whole(data.arrays["img"]), contents()["vgg_features"])
    assert data.frame.columns == ["id", *GENRES, "split"]
    np.testing.assert_array_equal(data.frame.select(GENRES).to_numpy(), contents()["genres"])
    assert data.frame["id"].to_list()[:2] == ["0088885", "0088886"]
    assert data.frame["split"].to_list() == ["train"] * 4 + ["validation"] * 2 + ["test"] * 3
    assert data.notes == ()


def test_genres_are_named_by_the_file(tmp_path: Path) -> None:
    """The columns are called what the file calls them; a file that does not say is taken to have the published order."""
    data = mmimdb.read(write(tmp_path, target_names=GENRES[::-1]), sizes=SIZES)
    assert data.frame.columns[1:-1] == list(GENRES[::-1])
    (tmp_path / mmimdb.FILE).unlink()
    data = mmimdb.read(write(tmp_path, target_names=None), sizes=SIZES)
    assert data.frame.columns[1:-1] == list(GENRES)
    assert data.notes == (f"multimodal_imdb.hdf5 does not name its genres: taken to be {', '.join(GENRES)}",)


@pytest.mark.parametrize("kind", ["S7", "int64", "text"])
def test_ids_are_seven_digits_however_stored(tmp_path: Path, kind: str) -> None:
    """Bytes, numbers and text all become the id of the film's address at IMDb."""
    ids = np.array(["0000417", *map(str, range(1, NUM_ROWS))]).astype("O" if kind == "text" else kind)
    data = mmimdb.read(write(tmp_path, contents() | {"imdb_ids": ids}), sizes=SIZES)
    assert data.frame["id"].to_list()[:2] == ["0000417", "0000001"]


def test_the_released_sizes_are_the_default(tmp_path: Path) -> None:
    """25,959 rows are 15,552, 2,608 and 7,799; another number needs sizes, and is never cut by guess."""
    counts = mmimdb.read(write(tmp_path, contents(25959, width=2))).frame["split"].value_counts()
    assert dict(counts.iter_rows()) == {"train": 15552, "validation": 2608, "test": 7799}
    (tmp_path / mmimdb.FILE).unlink()
    with pytest.raises(DataError, match=r"expected 15552 \+ 2608 \+ 7799 rows .*, found 9; give the file's own sizes"):
        mmimdb.read(write(tmp_path))


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    """A plot without any known word has NaN features, which are kept; infinity becomes NaN with a note."""
    rows = contents()
    rows["features"][3] = np.nan
    rows["vgg_features"][0, 0] = np.inf
    data = mmimdb.read(write(tmp_path, rows), sizes=SIZES)
    assert np.isnan(whole(data.arrays["language"])).all(axis=1).tolist() == [i == 3 for i in range(NUM_ROWS)]
    assert data.notes == ("img: 1 of 36864 values read as missing: they are infinite",)


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no posters": (lambda rows: rows.pop("vgg_features"), "expected HDF5 with imdb_ids, genres, .*vgg_features"),
    "no genres": (lambda rows: rows.pop("genres"), "expected HDF5 with imdb_ids, genres"),
    "fewer plots": (lambda rows: rows.update(features=rows["features"][:5]), r"features: .*\(9, any\), found float32 \(5, 300\)"),
    "flat posters": (lambda rows: rows.update(vgg_features=np.zeros(9)), r"vgg_features: .* found float64 \(9,\)"),
    "fewer genres": (lambda rows: rows.update(genres=rows["genres"][:, :5]), r"genres: .*\(9, 23\), found int32 \(9, 5\)"),
    "genres above 1": (lambda rows: rows.update(genres=rows["genres"] * 2), "expected genres 0 or 1"),
    "ids twice": (lambda rows: rows.update(imdb_ids=rows["imdb_ids"][[0, *range(8)]]), "every id once, found 1 of them"),
    "ids of letters": (lambda rows: rows.update(imdb_ids=np.array([b"tt"] * 9)), "expected HDF5 with imdb_ids"),
}


@pytest.mark.parametrize("name", BAD)
def test_another_content_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """What is missing or has another shape is told with the file and the figures."""
    change, message = BAD[name]
    rows = contents()
    change(rows)
    with pytest.raises(DataError, match=message) as error:
        mmimdb.read(write(tmp_path, rows), sizes=SIZES)
    assert str(tmp_path / mmimdb.FILE) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [["Drama"] * 23, ["id", *GENRES[1:]], list(range(23))])
def test_genre_names_must_be_usable(tmp_path: Path, names: list[object]) -> None:
    """Names that repeat, or that are the frame's own columns, are refused."""
    with pytest.raises(DataError, match="expected distinct genres in target_names"):
        mmimdb.read(write(tmp_path, target_names=names), sizes=SIZES)


@pytest.mark.parametrize("sizes", [(4, 5), (9, 0, 0), (5, 5, -1)])
def test_sizes_are_three_and_add_up(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """A split that is absent, empty or negative is refused."""
    with pytest.raises(DataError, match="give the file's own sizes"):
        mmimdb.read(write(tmp_path), sizes=sizes)


def test_a_missing_or_other_file_is_told(tmp_path: Path) -> None:
    """No file, and a file that is no HDF5, are one line naming it."""
    with pytest.raises(DataError, match=r"multimodal_imdb\.hdf5: no such file"):
        mmimdb.read(tmp_path)
    (tmp_path / mmimdb.FILE).write_bytes(b"movies")
    with pytest.raises(DataError, match=r"multimodal_imdb\.hdf5: expected HDF5"):
        mmimdb.read(tmp_path)
