"""Multiple Features: six files of the same digits, as written by hand here."""

from pathlib import Path

import numpy as np
import pytest

from training.data.mfeat import FILES, read
from training.errors import DataError

NUM_FEATURES = dict(zip(FILES, (4, 3, 3, 5, 2, 6), strict=True))


def write(folder: Path, *, num_rows: int = 12) -> None:
    """The layout of the wheel: a row of column numbers, features, the digit last."""
    generator = np.random.default_rng(0)
    for view, file in FILES.items():
        table = np.c_[generator.normal(size=(num_rows, NUM_FEATURES[view])).round(3), np.arange(num_rows) % 10]
        header = ",".join(map(str, range(table.shape[1])))
        np.savetxt(folder / file, table, delimiter=",", header=header, comments="", fmt="%g")


def test_every_file_is_a_view_of_the_same_digits(tmp_path: Path) -> None:
    """Six arrays, one digit per row, the digit in none of them."""
    write(tmp_path)
    data = read(tmp_path)
    assert data.frame["digit"].to_list() == [row % 10 for row in range(12)]
    assert {view: array.shape for view, array in data.arrays.items()} == {v: (12, n) for v, n in NUM_FEATURES.items()}
    first = np.genfromtxt(tmp_path / "mfeat-fac.csv", delimiter=",", skip_header=1)
    np.testing.assert_array_equal(data.arrays["profile_correlations"], first[:, :-1].astype(np.float32))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "mfeat-mor.csv: no such file"),
        ("0,1\n", "expected at least one row"),
        ("0,1\n1,2\n", "its last column is not the digits of mfeat-fac.csv"),
        ("0,1\n1,11\n", "expected digits 0 to 9 in the last column"),
        ("0,1\nx,1\n", "column 0: row 1 of 1 is not a finite number"),
        ("0\n1\n", "expected features and the digit, found 1 columns"),
    ],
)
def test_a_file_that_does_not_fit_is_told(content: str | None, told: str, tmp_path: Path) -> None:
    """Absent, empty, of other rows, or not of digits: one line with the file."""
    write(tmp_path)
    path = tmp_path / "mfeat-mor.csv"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path)
