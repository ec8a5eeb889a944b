"""Requests as data, and how their responses are read: what both clients share."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from service.client.errors import AnswerError, InvalidInputError
from service.client.results import (
    ExplanationsResponse,
    FailedPrediction,
    ItemError,
    KeptPredictionsResponse,
    ModelResponse,
    OutcomeItem,
    OutcomesResponse,
    Prediction,
    PredictResponse,
)

Explain = bool | Literal["features"]
Record = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]
HEADER_LENGTH = "Inference-Header-Content-Length"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Call(Generic[_T]):
    """One request, and how to read its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], _T]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def checked_id(request_id: str) -> str:
    """A request id that the service takes over; it would put another in the place of any other. Raises `ValueError`."""
    if not _SANE_ID.fullmatch(request_id):
        raise ValueError("expected a request_id of 1 to 128 letters, digits, '.', '_' and '-', found something else")
    return request_id


def predict_call(records: Sequence[bytes], *, explain: Explain) -> Call[PredictResponse]:
    """POST /predict for records that are JSON already."""
    body = b'{"instances":[' + b",".join(records) + b'],"explain":' + msgspec.json.encode(explain) + b"}"
    headers = {"Content-Type": "application/json"}
    return Call("POST", "/predict", lambda response: decoded(response, PredictResponse), body, headers)


def model_call() -> Call[ModelResponse]:
    """GET /model."""
    return Call("GET", "/model", lambda response: decoded(response, ModelResponse))


def explanations_call() -> Call[ExplanationsResponse]:
    """GET /explanations."""
    return Call("GET", "/explanations", lambda response: decoded(response, ExplanationsResponse))


def kept_call(request_id: str) -> Call[KeptPredictionsResponse]:
    """GET /predictions/{request_id}."""
    path = f"/predictions/{checked_id(request_id)}"
    return Call("GET", path, lambda response: decoded(response, KeptPredictionsResponse))


def outcomes_call(outcomes: Sequence[OutcomeItem]) -> Call[OutcomesResponse]:
    """POST /outcomes."""
    body, headers = msgspec.json.encode({"outcomes": outcomes}), {"Content-Type": "application/json"}
    return Call("POST", "/outcomes", lambda response: decoded(response, OutcomesResponse), body, headers)


def decoded(response: httpx.Response, kind: type[_T]) -> _T:
    """A JSON body. Raises `AnswerError`."""
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:  # names a place and a type, never a value
        raise AnswerError(f"expected {kind.__name__} of this API's version, found something else: {error}") from None


def encode_record(record: Record) -> bytes:
    """A record as JSON; numpy's numbers and arrays are taken, NaN becomes null. Raises `TypeError`."""
    return msgspec.json.encode(record, enc_hook=_plain)


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"expected values that JSON has, or numpy's, found {type(value).__name__}")


def chunks(records: Iterable[Record], *, max_instances: int, max_bytes: int) -> Iterator[list[bytes]]:
    """Encoded records in groups that fit one request; one record that is too large alone is left to the service to refuse."""
    chunk: list[bytes] = []
    size = 0
    for record in records:
        encoded = encode_record(record)
        if chunk and (len(chunk) == max_instances or size + len(encoded) + 1 > max_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(encoded)
        size += len(encoded) + 1
    if chunk:
        yield chunk


def refused_alike(error: InvalidInputError, records: Sequence[bytes]) -> list[Prediction | FailedPrediction]:
    """The answers to a chunk of which no record fits: what /predict says of each when another one fits.

    Raises `error` where it is about the request and not about its records.
    """
    mine = [[place for place in error.detail if place.loc[:2] == ["instances", i]] for i in range(len(records))]
    if not any(mine):
        raise error
    told = "not told one by one: too many problems in one request"  # the service lists a hundred
    return [
        FailedPrediction(
            id=msgspec.json.decode(record, type=_Identified).id,
            error=ItemError(code=error.code, message=places[0].msg if places else told, detail=places),
        )
        for record, places in zip(records, mine, strict=True)
    ]


class _Identified(msgspec.Struct):
    id: Any = None


def infer_call(name: str, arrays: Arrays, *, outputs: Sequence[str] | None) -> Call[dict[str, NDArray[np.float32]]]:
    """POST /v2/models/{name}/infer: the Open Inference Protocol with its binary tensor data extension.

    Args:
        name: of the model.
        arrays: modality -> (records, columns); NaN where missing.
        outputs: which to answer; all, where None.

    Raises `ValueError` for arrays that are not numbers in two dimensions.
    """
    tensors = {modality: _tensor(modality, array) for modality, array in arrays.items()}
    head: dict[str, Any] = {
        "inputs": [
            {"name": key, "shape": list(a.shape), "datatype": "FP32", "parameters": {"binary_data_size": a.nbytes}}
            for key, a in tensors.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    if outputs is not None:
        head["outputs"] = [{"name": output} for output in outputs]
    text = msgspec.json.encode(head)
    body = b"".join([text, *(array.tobytes() for array in tensors.values())])
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return Call("POST", f"/v2/models/{quote(name, safe='')}/infer", _read_infer, body, headers)


def _tensor(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected numbers of shape (records, columns), found {array.dtype} of shape {array.shape}")
    return np.ascontiguousarray(array, "<f4")


class _Parameters(msgspec.Struct):
    binary_data_size: int


class _Output(msgspec.Struct):
    name: str
    shape: list[int]
    parameters: _Parameters


class _Head(msgspec.Struct):
    outputs: list[_Output]


def _read_infer(response: httpx.Response) -> dict[str, NDArray[np.float32]]:
    body = response.content
    arrays: dict[str, NDArray[np.float32]] = {}
    try:
        start = int(response.headers.get(HEADER_LENGTH, len(body)))
        for output in msgspec.json.decode(body[:start], type=_Head).outputs:
            end = start + output.parameters.binary_data_size
            arrays[output.name] = np.frombuffer(body[start:end], "<f4").reshape(output.shape)
            start = end
    except (msgspec.DecodeError, ValueError):
        raise AnswerError("expected tensors in the bytes after the JSON part, found something else") from None
    return arrays
