"""MM-IMDb, the authors' own feature file: 25,959 films, a plot and a poster each, 23 genres that may hold together.

Layout of the folder: multimodal_imdb.hdf5 with imdb_ids, features (N, 300: mean word2vec of the plot), vgg_features
(N, 4096: VGG16 of the poster) and genres (N, 23); its other data sets are not read. The rows lie in the order of the split:
15,552 for training, 2,608 for validation, 7,799 for testing. Arevalo et al., "Gated Multimodal Units for Information Fusion",
ICLR 2017 workshop.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.released import ID, SPLIT, ReleasedData, check_numbers, find_file, library, unique_ids, without_infinities
from training.data.rows import LazyRows, Positions
from training.data.split import SPLITS
from training.errors import DataError

FILE = "multimodal_imdb.hdf5"
MODALITIES = ("language", "img")  # the released loader's order and names
SIZES = (15_552, 2_608, 7_799)  # of the released file: train, validation, test
GENRES = (  # by falling frequency, as the authors' program wrote them
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery", "Sci-Fi",
    "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport", "Short", "Film-Noir",
)  # fmt: skip

_DATASETS = dict(zip(MODALITIES, ("features", "vgg_features"), strict=True))


def read(root: Path, *, sizes: Sequence[int] = SIZES) -> ReleasedData:
    """Read the file. `sizes` are the rows of the three splits, for another file than the released one. Raises `DataError`."""
    path, h5py = find_file(root, FILE), library("h5py")
    try:
        with h5py.File(path, "r") as file:
            ids = [_imdb_id(value) for value in file["imdb_ids"][()].tolist()]
            contents = {name: file[dataset] for name, dataset in _DATASETS.items()}
            for name, features in contents.items():
                check_numbers(features, f"{path}: {_DATASETS[name]}", shape=(len(ids), None))
            rows = {name: _Features(path, _DATASETS[name], features.shape) for name, features in contents.items()}
            genres, names = file["genres"][()], _names(file["genres"].attrs)
    except DataError:
        raise
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        reason = (str(error).strip("'\" \n") or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: expected HDF5 with imdb_ids, genres, {', '.join(_DATASETS.values())} ({reason})") from error
    labels = {genre: genres[:, i].astype(np.int8) for i, genre in enumerate(_check_genres(genres, names, len(ids), path))}
    frame = pl.DataFrame({ID: unique_ids(ids, path), **labels, SPLIT: _splits(len(ids), sizes, path)})
    arrays, infinite = without_infinities(rows)
    assumed = (f"{FILE} does not name its genres: taken to be {', '.join(GENRES)}",) if names is None else ()
    return ReleasedData(frame, arrays, (*assumed, *infinite))


@dataclass(frozen=True, slots=True)
class _Features(LazyRows):
    """One data set of the file, a vector per film, read when asked for."""

    path: Path
    dataset: str
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, columns)."""
        return self.sizes

    def __getitem__(self, rows: Positions) -> NDArray[Any]:
        wanted, places = np.unique(rows, return_inverse=True)  # HDF5 reads rows in rising order, each once
        with library("h5py").File(self.path, "r") as file:
            values: NDArray[Any] = file[self.dataset][wanted]
        return values[places]


def _imdb_id(value: object) -> str:
    """Seven digits, as in the film's address at IMDb."""
    return str(int(value)).zfill(7)  # type: ignore[call-overload]  # bytes, text or a number; anything else is a TypeError


def _names(attributes: Any) -> list[str] | None:
    """The genres' names in the order of the columns, which the authors' program leaves as JSON beside them."""
    if (text := attributes.get("target_names")) is None:
        return None
    names: list[str] = json.loads(text)
    return names


def _check_genres(genres: NDArray[Any], names: list[str] | None, num_rows: int, path: Path) -> list[str]:
    names = list(GENRES) if names is None else names
    if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names) or {ID, SPLIT} & set(names):
        raise DataError(f"{path}: expected distinct genres in target_names, found {names}")
    check_numbers(genres, f"{path}: genres", shape=(num_rows, len(names)))
    if not np.isin(genres, (0, 1)).all():
        raise DataError(f"{path}: expected genres 0 or 1, found {np.unique(genres)[:5].tolist()} ...")
    return names


def _splits(num_rows: int, sizes: Sequence[int], path: Path) -> list[str]:
    if len(sizes) != len(SPLITS) or min(sizes) < 1 or sum(sizes) != num_rows:
        wanted = " + ".join(str(size) for size in sizes)
        raise DataError(f"{path}: expected {wanted} rows (train, validation, test), found {num_rows}; give the file's own sizes")
    return [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
