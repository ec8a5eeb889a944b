from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from training.data import enrico
from training.data.enrico import CLASSES
from training.data.rows import whole
from training.errors import DataError

IDS = [str(50000 + i) for i in range(20)]


def colour(one: str, shift: int) -> tuple[int, int, int]:
    """A colour that belongs to one screen."""
    return (int(one) % 256, shift, 255)


def write(folder: Path, ids: list[str] = IDS) -> Path:
    """The released folder: one colour per image, the topics in turn."""
    (folder / "screenshots").mkdir()
    (folder / "wireframes").mkdir()
    rows = [f"{one},{CLASSES[i % len(CLASSES)]}\n" for i, one in enumerate(ids)]
    (folder / "design_topics.csv").write_text("screen_id,topic\n" + "".join(rows))
    for one in ids:
        Image.new("RGB", (54, 96), colour(one, 0)).save(folder / "screenshots" / f"{one}.jpg", quality=100, subsampling=0)
        Image.new("RGBA", (54, 96), (*colour(one, 128), 255)).save(folder / "wireframes" / f"{one}.png")
    return folder


def test_the_released_layout_is_read(tmp_path: Path) -> None:
    """Screenshot, then wireframe, each (3, 256, 128) from 0 to 1; one topic per screen."""
    data = enrico.read(write(tmp_path))
    assert tuple(data.arrays) == enrico.MODALITIES == ("screenshot", "wireframe")
    images = {name: whole(array) for name, array in data.arrays.items()}
    assert all((array.shape, array.dtype) == ((20, 3, 256, 128), np.float32) for array in images.values())
    assert data.frame["id"].to_list() == IDS
    assert data.frame["topic"].to_list() == list(CLASSES)
    for row, one in enumerate(IDS):
        wanted = np.array(colour(one, 128)) / 255
        np.testing.assert_allclose(images["wireframe"][row], np.broadcast_to(wanted[:, None, None], (3, 256, 128)), atol=1e-6)
        wanted = np.array(colour(one, 0)) / 255
        np.testing.assert_allclose(images["screenshot"][row].mean(axis=(1, 2)), wanted, atol=0.02)  # what jpeg loses
    assert data.notes == ("images are not augmented",)


def test_topics_are_in_alphabetical_order() -> None:
    """The 20 topics of the released loader, sorted."""
    assert (list(CLASSES), len(CLASSES)) == (sorted(CLASSES), 20)


def test_damaged_screens_are_dropped_and_told(tmp_path: Path) -> None:
    """50105 and 50109 are left out before the split is drawn, and their images are not needed."""
    ids = [*IDS[:10], "50105", *IDS[10:], "50109"]
    write(tmp_path, ids)
    (tmp_path / "wireframes" / "50105.png").unlink()
    data = enrico.read(tmp_path, size=(4, 2))
    assert data.frame["id"].to_list() == IDS
    assert data.notes[0] == "2 of 22 screens dropped: their wireframes are damaged"


def test_the_split_is_the_released_one(tmp_path: Path) -> None:
    """Positions shuffled by Python's generator with seed 42, then 65 %, 15 % and 20 %; 947, 219 and 292 of 1,458."""
    data = enrico.read(write(tmp_path), size=(2, 2))
    of_split = {split: data.frame.filter(pl.col("split") == split)["id"].to_list() for split in ("train", "validation", "test")}
    assert {split: len(ids) for split, ids in of_split.items()} == {"train": 13, "validation": 3, "test": 4}
    shuffled = [19, 5, 14, 4, 9, 13, 15, 18, 6, 12, 17, 10, 1, 11, 2, 16, 7, 8, 0, 3]  # Random(42).shuffle(list(range(20)))
    assert of_split["validation"] == [IDS[i] for i in sorted(shuffled[13:16])]
    assert of_split["test"] == [IDS[i] for i in sorted(shuffled[16:])]
    full = enrico._splits(1458, tmp_path)
    assert [full.count(split) for split in ("train", "validation", "test")] == [947, 219, 292]


def test_images_keep_their_orientation(tmp_path: Path) -> None:
    """Rows are the image's rows from the top: a red top half stays on top, at any size."""
    write(tmp_path)
    image = Image.new("RGB", (54, 96), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 54, 48))
    image.save(tmp_path / "wireframes" / f"{IDS[3]}.png")
    picture = whole(enrico.read(tmp_path, size=(10, 6)).arrays["wireframe"])[3]
    assert picture.shape == (3, 10, 6)
    assert picture[:, 0, 0].tolist() == picture[:, 0, -1].tolist() == [1, 0, 0]
    assert picture[:, -1, 0].tolist() == [0, 0, 1]


def test_an_absent_image_is_told(tmp_path: Path) -> None:
    """An unfinished download is refused with the number of absent images, not read as missing modalities."""
    write(tmp_path)
    (tmp_path / "wireframes" / f"{IDS[2]}.png").unlink()
    (tmp_path / "wireframes" / f"{IDS[5]}.png").unlink()
    with pytest.raises(DataError, match=rf"expected 40 images, found 2 of them absent \(first: wireframes/{IDS[2]}.png\)"):
        enrico.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GIF", b"\x89PNG\r\n\x1a\n rubbish"])
def test_a_damaged_image_is_told(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no image are one line naming the file."""
    write(tmp_path)
    (tmp_path / "screenshots" / f"{IDS[0]}.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"{IDS[0]}.jpg: cannot be read as an image") as error:
        whole(enrico.read(tmp_path).arrays["screenshot"])
    assert "\n" not in str(error.value)


def test_a_truncated_image_is_told(tmp_path: Path) -> None:
    """Half an image is not half read."""
    path = write(tmp_path) / "screenshots" / f"{IDS[0]}.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="cannot be read as an image"):
        whole(enrico.read(tmp_path).arrays["screenshot"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,topic\n1,list\n", "design_topics.csv: expected columns screen_id, topic, found no screen_id"),
        ("screen_id,topic\n", "design_topics.csv: expected at least one row, found none"),
        (
            "screen_id,topic\n1,list\n1,menu\n",
            r"design_topics.csv: expected every id once, found 1 of them more often \(first: 1\)",
        ),
        ("screen_id,topic\n1,list\n2,game\n3,\n", "design_topics.csv: expected topics bare, .*, found '', 'game'"),
        ("screen_id,topic\n1,list\n2,menu\n", "design_topics.csv: expected enough screens for three splits, found 2"),
    ],
)
def test_another_table_is_refused_in_one_line(tmp_path: Path, table: str, message: str) -> None:
    """Columns, ids and topics that do not fit are told with the figures."""
    (tmp_path / "design_topics.csv").write_text(table)
    with pytest.raises(DataError, match=message) as error:
        enrico.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    """The path that was tried is in the message."""
    with pytest.raises(DataError, match=r"design_topics\.csv: no such file"):
        enrico.read(tmp_path)
