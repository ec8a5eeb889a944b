"""Arrays out of pickles and torch files, without running anything they ask for.

A pickle is a program: loading one from a stranger runs the stranger's code. Here the few names that pickled numpy arrays
mention stand for recorders of our own, which note what an array is made of; every other name is refused. The arrays are
built afterwards from what was noted, so not even numpy's own unpickling, which trusts its input, is reached.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import DataError

_PLAIN = (str, bytes, int, float, bool, type(None), np.generic)  # np.generic: numbers built by `_scalar`
_DTYPE_CODE = re.compile(r"[biuf][1248]|[SU][0-9]+|O8?")  # numbers, fixed-width text, Python objects
_TORCH_REFUSAL = re.compile(r"Unsupported global: GLOBAL (\S+) was not|Trying to load unsupported GLOBAL (\S+)")
_BYTE_ORDERS = ("<", ">", "=", "|")


class _Dtype:
    """Recorder of numpy.dtype: a type code, then its state."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"holds values of numpy type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, *parts = state  # version, byte order, subarray, names, fields, ...
        if self.order not in _BYTE_ORDERS or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("holds values of a structured numpy type")

    def built(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """Recorder of numpy's _reconstruct: an empty array, then its state."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _build(content, dtype, shape, "F" if is_fortran else "C")


class _ArrayType:
    """Stands for numpy.ndarray, which a pickle names and never needs."""


def _build(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    if dtype.code.startswith("O"):
        return _objects(content).reshape(shape, order=order)
    raw = content.encode("latin1") if isinstance(content, str) else content  # written by Python 2
    values = np.frombuffer(raw, dtype.built()) if raw else np.empty(0, dtype.built())  # frombuffer refuses empty ones
    return values.reshape(shape, order=order)


def _objects(items: list[Any]) -> NDArray[Any]:
    """One element per item, even where the items are lists of one length."""
    objects = np.empty(len(items), object)
    for place, item in enumerate(items):
        objects[place] = item
    return objects


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return _build(content, dtype, (), "C")[()]


def _from_buffer(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: object) -> NDArray[Any]:
    return _build(content, dtype, shape, order)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_RECORDERS: Mapping[str, Callable[..., Any]] = {
    "numpy.ndarray": _ArrayType,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},  # numpy 1 and 2
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},  # pickle protocol 5
    "_codecs.encode": _latin1,  # bytes in pickle protocol 2
    **{f"{builtins}.bytes": _no_bytes for builtins in ("__builtin__", "builtins")},  # none at all, there
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The recorder of a name; every other name is refused, and nothing is imported."""
        if (full_name := f"{module}.{name}") not in _RECORDERS:
            raise pickle.UnpicklingError(f"names {full_name}")
        return _RECORDERS[full_name]


def read_pickle(path: Path) -> Any:
    """What a pickle of dicts, lists, text, numbers and numpy arrays holds. Raises `DataError` for any other."""
    wanted = "a pickle of dicts, lists, text, numbers and numpy arrays and nothing else (nothing in it was run)"

    def load(file: BinaryIO) -> Any:
        return _built(_Unpickler(file, encoding="latin1").load())

    return _read(path, load, wanted)


def read_torch_array(path: Path) -> NDArray[Any]:
    """The one numpy array or tensor that torch.save wrote. Raises `DataError` for any other content."""
    wanted = "one numpy array or tensor written by torch.save (nothing in it was run)"

    def load(file: BinaryIO) -> NDArray[Any]:
        with torch.serialization.safe_globals([(recorder, name) for name, recorder in _RECORDERS.items()]):
            content = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(content, torch.Tensor):
            return (content.float() if content.is_floating_point() else content).detach().numpy()
        if not isinstance(content, _Array | np.ndarray):
            raise pickle.UnpicklingError(f"holds a {type(content).__name__}")
        array: NDArray[Any] = _built(content)
        return array

    return _read(path, load, wanted)


def _read(path: Path, load: Callable[[BinaryIO], Any], wanted: str) -> Any:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice about pickle protocols
            return load(file)
    except Exception as error:  # a damaged or hostile pickle can fail anywhere and in any way
        raise DataError(f"{path}: expected {wanted}, found: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line of an error, without torch's advice to allow whatever a file asks for."""
    text = str(error).strip() or type(error).__name__
    if asked := _TORCH_REFUSAL.search(text):
        return f"names {asked.group(1) or asked.group(2)}"
    own_text = text.rpartition("WeightsUnpickler error:")[2].strip()
    return own_text.splitlines()[0][:200] if own_text else "something else"


def _built(value: Any) -> Any:
    """What was recorded as plain values and numpy arrays."""
    return _Builder().built(value)


class _Builder:
    """Builds every part once, since a part may be named many times: lists of lists of one list are a file of a few bytes."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}  # by the identity of what was recorded, which lives as long as the whole

    def built(self, value: Any) -> Any:
        """One part of what was recorded."""
        if id(value) not in self._known:
            self._known[id(value)] = self._build(value)
        return self._known[id(value)]

    def _build(self, value: Any) -> Any:
        if isinstance(value, _Array):
            value = value.value
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, dict):
            return {self.built(key): self.built(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.built(item) for item in value])
        if not isinstance(value, _PLAIN):
            raise pickle.UnpicklingError(f"holds a {type(value).__name__.lstrip('_')}")
        return value

    def _array(self, array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind != "O":
            return array
        items = array.ravel().tolist()
        return _objects([self.built(item) for item in items]).reshape(array.shape)
