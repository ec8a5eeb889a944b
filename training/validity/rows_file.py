"""explanations.npz: what every expert contributed to every label, for the test rows of a run, so that runs can be compared.

Holds contributions, predicted labels and a fingerprint of which rows these are: no values, no identifiers. The fingerprint
is of row positions and targets, so it does not depend on what a schema or a model made of the rows.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.explanation import contributions, decide
from service.bundle.manifest import TaskInfo
from service.bundle.output import Output
from training.errors import RunError
from training.validity.estimates import Floats

ROWS_FILE = "explanations.npz"


@dataclass(frozen=True, slots=True)
class ExplainedRows:
    """One run's explanations of its test rows."""

    contribution: NDArray[np.float32]  # (N, E, C)
    label: NDArray[np.intp]  # (N,), predicted
    fingerprint: str

    def shares(self, label_N: NDArray[np.intp]) -> Floats:
        """Contribution shares (N, E) towards these labels; all equal where nothing contributes."""
        magnitude_NE = np.abs(np.take_along_axis(self.contribution, label_N[:, None, None], axis=2)[:, :, 0], dtype=np.float64)
        total_N1 = magnitude_NE.sum(axis=1, keepdims=True)
        uniform = np.full_like(magnitude_NE, 1 / magnitude_NE.shape[1])
        return np.divide(magnitude_NE, total_N1, out=uniform, where=total_N1 > 0)


def explained_rows(output: Output, target: NDArray[Any], positions: NDArray[np.intp], task: TaskInfo) -> ExplainedRows:
    """The explanations of `output`, for rows at these positions of the table."""
    digest = hashlib.sha256(positions.astype(np.int64).tobytes())
    digest.update(np.ascontiguousarray(target, np.float64).tobytes())
    return ExplainedRows(contributions(output, task), decide(output.prediction, task).astype(np.intp), digest.hexdigest())


def save_rows(rows: ExplainedRows, run: Path) -> None:
    """Write RUN/explanations.npz, whole or not at all."""
    path = run / ROWS_FILE
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, contribution=rows.contribution, label=rows.label, fingerprint=rows.fingerprint)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_rows(run: Path) -> ExplainedRows:
    """Read RUN/explanations.npz. Raises `RunError`."""
    path = run / ROWS_FILE
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return ExplainedRows(file["contribution"], file["label"], str(file["fingerprint"]))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; expected a run trained by this version, with validity.enabled") from None
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: is damaged ({type(error).__name__})") from error
