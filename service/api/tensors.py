"""Inference requests and responses of the Open Inference Protocol, with numbers as JSON or as bytes.

The protocol is KServe's V2 with the binary tensor data extension: the header Inference-Header-Content-Length says how many
bytes of the body are JSON, and the numbers of each tensor whose `binary_data_size` is given follow, in order, little-endian and
row-major. NaN, or null in JSON, is a missing value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from service.api.errors import InvalidInputError, InvalidJsonError
from service.api.requests import headline
from service.bundle.answers import Answers
from service.bundle.errors import InvalidRecordError, Problem
from service.bundle.features import FloatArray, UnfitValueError, read_numbers
from service.bundle.flat import FlatRecords, Numbers, encode_flat
from service.bundle.manifest import Manifest
from service.bundle.schema import MAX_PROBLEMS, FeatureSchema, shown_key

HEADER_LENGTH = "Inference-Header-Content-Length"
Loc = tuple[str | int, ...]
_MAX_TENSORS = 64
_MAX_LENGTH_DIGITS = 12
_Dimension = Annotated[int, Field(gt=0, lt=2**31)]  # products of more digits than Python writes would be no answer
_DTYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
# What may be asked for, in the order in which it is answered when nothing is.
OUTPUTS: Mapping[str, Callable[[Answers], FloatArray]] = {
    "prediction": lambda answers: answers.output.prediction,
    "logits": lambda answers: answers.output.logits,
    "expert_weights": lambda answers: answers.output.expert_weights,
    "expert_logits": lambda answers: answers.output.expert_logits,
    "contribution": lambda answers: answers.contribution,
    "contribution_share": lambda answers: answers.share,
}


class _Protocol(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class InputParameters(BaseModel):
    """Of an input; others than these are ignored, as the protocol has it."""

    binary_data_size: NonNegativeInt | None = Field(default=None, description="Bytes of this tensor after the JSON part.")


class OutputParameters(BaseModel):
    """Of an output that is asked for."""

    binary_data: bool | None = Field(default=None, description="Answer this tensor in bytes.")


class RequestParameters(BaseModel):
    """Of a request."""

    binary_data_output: bool = Field(default=False, description="Answer every tensor in bytes that does not say otherwise.")


class InferInput(_Protocol):
    """The flat vectors of one modality."""

    name: str = Field(description="A modality.")
    shape: Annotated[list[_Dimension], Field(min_length=2, max_length=2)] = Field(description="Records, columns.")
    datatype: Literal["FP32", "FP64"]
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(default=None, description="The numbers, row-major, nested or flat; null where missing.")


class InferOutput(_Protocol):
    """An output that is asked for."""

    name: Literal["prediction", "logits", "expert_weights", "expert_logits", "contribution", "contribution_share"]
    parameters: OutputParameters | None = None


class InferRequest(_Protocol):
    """Records to score, one tensor per modality; a modality that is missing everywhere may be left out."""

    id: str | None = None
    parameters: RequestParameters | None = None
    # Lists are bounded and judged up to their first fault: each of many empty objects has three faults to tell.
    inputs: list[InferInput] = Field(min_length=1, max_length=_MAX_TENSORS, fail_fast=True)
    outputs: list[InferOutput] | None = Field(
        default=None, max_length=_MAX_TENSORS, fail_fast=True, description="All, where nothing is asked for."
    )


@dataclass(frozen=True, slots=True)
class ParsedInfer:
    """A good request: its records, and what to answer in bytes."""

    id: str | None
    records: FlatRecords
    size: int
    outputs: dict[str, bool]  # name -> in bytes?


def parse_infer(body: bytes, header_length: str | None, schema: FeatureSchema, *, max_instances: int) -> ParsedInfer:
    """Read a request. Raises `InvalidJsonError`, and `InvalidInputError` with its places."""
    text, numbers = _split(body, header_length)
    request = _validated(text)
    arrays = _read_inputs(request.inputs, numbers, schema)
    size = len(next(iter(arrays.values())))
    if size > max_instances:
        raise _refusal(("inputs", 0, "shape"), "too_long", f"must hold at most {max_instances} records, found {size}")
    try:
        encoded = encode_flat(arrays, size, schema)
    except InvalidRecordError as error:
        raise InvalidInputError(headline(error.problems), [problem.under("inputs") for problem in error.problems]) from None
    return ParsedInfer(request.id, encoded, size, _asked(request))


def _asked(request: InferRequest) -> dict[str, bool]:
    """The outputs to answer, and whether in bytes."""
    by_default = request.parameters is not None and request.parameters.binary_data_output
    if not request.outputs:
        return dict.fromkeys(OUTPUTS, by_default)
    names = [output.name for output in request.outputs]
    if len(set(names)) < len(names):
        raise _refusal(("outputs",), "duplicate_output", "must name each output once")
    said = {output.name: output.parameters.binary_data if output.parameters else None for output in request.outputs}
    return {name: by_default if one is None else one for name, one in said.items()}


def _refusal(loc: Loc, type_: str, msg: str) -> InvalidInputError:
    problem = Problem(loc, type_, msg)
    return InvalidInputError(headline([problem]), [problem])


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON part and the bytes after it."""
    if header_length is None:
        return body, memoryview(b"")
    is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) <= _MAX_LENGTH_DIGITS
    if not is_number or int(header_length) > len(body):
        raise InvalidJsonError(f"expected {HEADER_LENGTH} to be a number of bytes within the body of {len(body)}")
    end = int(header_length)
    return body[:end], memoryview(body)[end:]


def _validated(text: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        raise InvalidJsonError("the body is not JSON")
    problems = [Problem(_shown(e["loc"]), e["type"], e["msg"]) for e in found[:MAX_PROBLEMS]]
    raise InvalidInputError(headline(problems), problems)


def _shown(loc: Loc) -> Loc:
    """A path whose keys, which are the caller's, are short."""
    return tuple(step if isinstance(step, int) else shown_key(step) for step in loc)


def _read_inputs(inputs: Sequence[InferInput], numbers: memoryview, schema: FeatureSchema) -> dict[str, Numbers]:
    widths = {modality.name: modality.width for modality in schema.modalities}
    arrays: dict[str, Numbers] = {}
    start = 0
    for position, tensor in enumerate(inputs):
        loc: Loc = ("inputs", position)
        if tensor.name not in widths or tensor.name in arrays:
            msg = f"must be one of {', '.join(widths)}, each once"
            raise _refusal((*loc, "name"), "unknown_input", msg)
        wanted = [inputs[0].shape[0], widths[tensor.name]]
        if tensor.shape != wanted:
            raise _refusal((*loc, "shape"), "shape", f"must be {wanted} for these records and this model")
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if (size is None) == (tensor.data is None):
            raise _refusal((*loc, "data"), "missing", "must be given, or else a binary_data_size, and not both")
        part = numbers[start : start + (size or 0)]
        start += size or 0
        arrays[tensor.name] = _from_json(tensor, loc) if size is None else _from_bytes(tensor, size, part, loc)
    if start != len(numbers):
        raise _refusal(
            ("inputs",), "binary_data_size", f"must add up to the {len(numbers)} bytes after the JSON part, found {start}"
        )
    return arrays


def _from_json(tensor: InferInput, loc: Loc) -> Numbers:
    try:
        numbers = read_numbers(tensor.data)
    except UnfitValueError as error:
        raise _refusal((*loc, "data"), error.type, str(error)) from None
    if numbers.size != prod(tensor.shape):
        raise _refusal((*loc, "data"), "shape", f"must hold {prod(tensor.shape)} numbers, found {numbers.size}")
    return numbers.reshape(tensor.shape)


def _from_bytes(tensor: InferInput, size: int, part: memoryview, loc: Loc) -> Numbers:
    dtype = _DTYPES[tensor.datatype]
    wanted = prod(tensor.shape) * dtype.itemsize
    if size != wanted or len(part) != wanted:
        msg = f"must be {wanted} for {tensor.datatype} of shape {tensor.shape}, with as many bytes after the JSON part"
        raise _refusal((*loc, "parameters", "binary_data_size"), "binary_data_size", msg)
    return np.frombuffer(part, dtype).reshape(tensor.shape)


def infer_response(parsed: ParsedInfer, answers: Answers, request_id: str) -> Response:
    """The outputs that were asked for, the JSON part first."""
    manifest = answers.manifest
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, in_bytes in parsed.outputs.items():
        array = np.ascontiguousarray(OUTPUTS[name](answers), "<f4")
        told: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if in_bytes:
            parts.append(array.tobytes())
            told["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            told["data"] = array.ravel().tolist()
        outputs.append(told)
    head = {"model_name": manifest.name, "model_version": manifest.version, "id": parsed.id or request_id, "outputs": outputs}
    text = to_json(head)
    if not parts:
        return Response(text, media_type="application/json")
    return Response(b"".join([text, *parts]), media_type="application/octet-stream", headers={HEADER_LENGTH: str(len(text))})


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """The protocol's description of the model: every input and output with its type and shape, -1 for the records."""
    num_experts, num_labels = len(manifest.experts), len(manifest.task.labels)
    per_label, per_expert = [-1, num_labels], [-1, num_experts]
    shapes = dict.fromkeys(OUTPUTS, per_expert) | {"prediction": per_label, "logits": per_label}
    shapes["expert_logits"] = [-1, num_experts, num_labels]
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": m.name, "datatype": "FP32", "shape": [-1, m.width]} for m in manifest.features.modalities],
        "outputs": [{"name": name, "datatype": "FP32", "shape": shape} for name, shape in shapes.items()],
    }
