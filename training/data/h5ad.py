"""AnnData files (.h5ad): a matrix with one named row per observation and one named column per variable.

Reads the matrix and its row names, dense or sparse, in the current and the older on-disk encodings, with h5py alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.data.released import library
from training.data.rows import FloatArray
from training.errors import DataError

_SPARSE = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}


def read_h5ad(path: Path) -> tuple[list[str], FloatArray]:
    """Row names and the matrix X (rows, columns); explicit NaN stays NaN, an absent sparse entry is 0. Raises `DataError`."""
    h5py = library("h5py")
    try:
        with h5py.File(path, "r") as file:
            rows, columns = _index(file["obs"]), _index(file["var"])
            matrix = _matrix(file["X"], (len(rows), len(columns)))
    except (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected an AnnData file with obs, var and X ({_first_line(error)})") from error
    if matrix.shape != (len(rows), len(columns)):
        raise DataError(f"{path}: expected X of shape ({len(rows)}, {len(columns)}) by obs and var, found {matrix.shape}")
    return rows, matrix


def _first_line(error: Exception) -> str:
    return (str(error).strip("'\" \n") or type(error).__name__).splitlines()[0]


def _index(table: Any) -> list[str]:
    """The names in obs or var: a group of columns, or (before anndata 0.7) one table of records."""
    if not hasattr(table, "keys"):
        records = table[()]
        return _texts(records["index" if "index" in records.dtype.names else "_index"])
    column = table[table.attrs.get("_index", "_index")]
    return _texts((column["values"] if hasattr(column, "keys") else column)[()])  # a group: text that may be missing


def _texts(values: NDArray[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _matrix(x: Any, expected: tuple[int, int]) -> FloatArray:
    if not hasattr(x, "keys"):
        return np.asarray(x[()], np.float32)
    attributes = x.attrs
    kind = str(attributes.get("encoding-type", f"{attributes.get('h5sparse_format', 'unknown')}_matrix"))
    shape = tuple(int(size) for size in attributes.get("shape", attributes.get("h5sparse_shape", ())))
    if kind not in _SPARSE or shape != expected:
        raise ValueError(f"X is {kind} of shape {shape} beside {expected[0]} rows in obs and {expected[1]} in var")
    parts = (np.asarray(x["data"][()], np.float32), x["indices"][()], x["indptr"][()])
    matrix = _SPARSE[kind](parts, shape=shape)
    matrix.check_format(full_check=True)
    dense: FloatArray = matrix.toarray()
    return dense
