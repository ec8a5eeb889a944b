"""ENRICO: 1,460 screens of mobile apps, screenshot and wireframe of each, and 20 design topics.

Layout of the folder: design_topics.csv (screen_id, topic), screenshots/<screen_id>.jpg, wireframes/<screen_id>.png.
Leiva, Hota and Oulasvirta, "Enrico: A Dataset for Topic Modeling of Mobile UI Designs", MobileHCI 2020.

Differences from the released loader: no image is flipped, cropped or blurred here (the released one draws that once at load, for
every screenshot, test rows too, and for wireframes of rows that are not the training rows), and images are resized with
anti-aliasing, which its bilinear resize of tensors lacks.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.released import ID, SPLIT, ReleasedData, find_file, library, read_rows, unique_ids
from training.data.rows import FloatArray, LazyRows, Positions
from training.errors import DataError

LABEL = "topic"
MODALITIES = ("screenshot", "wireframe")  # the released loader's order
CLASSES = (
    "bare", "camera", "chat", "dialer", "editor", "form", "gallery", "list", "login", "maps", "mediaplayer", "menu", "modal",
    "news", "other", "profile", "search", "settings", "terms", "tutorial",
)  # fmt: skip
IGNORES = ("50105", "50109")  # their wireframes are damaged
SIZE = (256, 128)  # height, width

_FILES = {"screenshot": "screenshots/{}.jpg", "wireframe": "wireframes/{}.png"}
_SHUFFLE_SEED = 42
_TRAIN, _VALIDATION = 0.65, 0.15


def read(root: Path, *, size: tuple[int, int] = SIZE) -> ReleasedData:
    """Read the folder; images come as (3, height, width) of `size`, from 0 to 1, decoded when asked for. Raises `DataError`."""
    path = find_file(root, "design_topics.csv")
    table = read_rows(path, ["screen_id", LABEL])
    ids = unique_ids(table["screen_id"].fill_null("").to_list(), path)
    topics = table[LABEL].fill_null("").str.strip_chars()
    if unknown := sorted(set(topics) - set(CLASSES)):
        raise DataError(f"{path}: expected topics {', '.join(CLASSES)}, found {', '.join(map(repr, unknown[:5]))}")
    frame = pl.DataFrame({ID: ids, LABEL: topics}).filter(~pl.col(ID).is_in(IGNORES))
    frame = frame.with_columns(pl.Series(SPLIT, _splits(frame.height, path)))
    _check_images(root, frame[ID].to_list())
    library("PIL.Image")  # absent, better told at once
    arrays = {name: _Images(tuple(root / _FILES[name].format(one) for one in frame[ID]), size) for name in MODALITIES}
    num_ignored = table.height - frame.height
    dropped = (f"{num_ignored} of {table.height} screens dropped: their wireframes are damaged",) if num_ignored else ()
    return ReleasedData(frame, arrays, (*dropped, "images are not augmented"))


def _splits(num_rows: int, path: Path) -> list[str]:
    """The split of every row: positions shuffled with the released seed, cut at 65 % and 80 %."""
    positions = list(range(num_rows))
    random.Random(_SHUFFLE_SEED).shuffle(positions)  # noqa: S311 - a split to reproduce, not a secret
    train, validation = int(num_rows * _TRAIN), int(num_rows * (_TRAIN + _VALIDATION))
    if not 0 < train < validation < num_rows:
        raise DataError(f"{path}: expected enough screens for three splits, found {num_rows}")
    splits = ["test"] * num_rows
    for rank, position in enumerate(positions[:validation]):
        splits[position] = "train" if rank < train else "validation"
    return splits


def _check_images(root: Path, ids: list[str]) -> None:
    """An absent image means an unfinished download: better told at once than read as a missing modality."""
    absent = [name for pattern in _FILES.values() for one in ids if not (root / (name := pattern.format(one))).is_file()]
    if absent:
        raise DataError(
            f"{root}: expected {len(ids) * len(_FILES)} images, found {len(absent)} of them absent (first: {absent[0]})"
        )


@dataclass(frozen=True, slots=True)
class _Images(LazyRows):
    """One image file per row, decoded when asked for: (N, 3, height, width) float32."""

    paths: tuple[Path, ...]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, 3, height, width)."""
        return (len(self.paths), 3, *self.size)

    def __getitem__(self, rows: Positions) -> FloatArray:
        images = np.empty((len(rows), *self.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            images[place] = _image(self.paths[row], self.size)
        return images

    def absent(self) -> NDArray[np.bool_]:
        """None: every file is there, and pixels are numbers."""
        return np.zeros(len(self.paths), np.bool_)


def _image(path: Path, size: tuple[int, int]) -> FloatArray:
    pillow, (height, width) = library("PIL.Image"), size
    try:
        with pillow.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((width, height), pillow.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error
    return pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
