"""From a request's body to encoded instances, with every complaint naming its place and never its value."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from msgspec import DecodeError, defstruct
from msgspec.json import Decoder
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from service.api.errors import BodyTooLargeError, InvalidInputError, InvalidJsonError, MediaTypeError
from service.api.models import PredictRequest
from service.bundle.errors import InvalidRecordError, Problem, and_more
from service.bundle.features import kind_of
from service.bundle.schema import EncodedRecord, FeatureSchema

Loc = tuple[str | int, ...]
Explain = bool | Literal["features"]
Opened = tuple[list[Any], Explain, Loc]  # the records, how to explain, and the path that leads to the records
_POSITION = re.compile(r"at line \d+ column \d+$")


@dataclass(frozen=True, slots=True)
class Instance:
    """One record of a request: encoded, or what is wrong with it."""

    id: str | int | None
    encoded: EncodedRecord | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Unread:
    """A request as it was sent, for a model that reads it otherwise than the one that was asked."""

    records: Callable[["RequestReader"], Sequence[Any]]  # one for each instance; raises `ApiError` where there are none
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request whose envelope is good; its instances need not be."""

    instances: list[Instance]
    explain: bool
    with_features: bool  # attribute each expert's contribution to features, too
    unread: Unread

    @property
    def encoded(self) -> list[EncodedRecord]:
        """The instances that can be scored, in order."""
        return [instance.encoded for instance in self.instances if instance.encoded is not None]

    def refusal(self) -> InvalidInputError:
        """Why none of the instances can be scored."""
        problems = [problem for instance in self.instances for problem in instance.problems]
        return InvalidInputError(headline(problems), problems)


def check_media_type(request: Request) -> None:
    """Refuse what is declared not to be JSON text. A missing or wrong plain type is forgiven: `curl -d` declares a form."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared.startswith("multipart/"):
        raise MediaTypeError("expected a body of type application/json, found multipart form data")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("expected an uncompressed body, found a Content-Encoding")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body; refused as soon as its declared or received size exceeds `max_bytes`, without keeping it."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLargeError(f"expected a body of at most {max_bytes} bytes, found {int(declared)}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError(f"expected a body of at most {max_bytes} bytes, found more")
    return bytes(body)


def headline(problems: Sequence[Problem]) -> str:
    """The first problem, and how many more there are."""
    rest = and_more(len(problems) - 1)
    return f"{problems[0]}{rest}"


class RequestReader:
    """Reads the requests of one model.

    A body in an envelope, which is nearly every body, goes straight into numbers by a decoder made for the schema. Whatever
    that decoder does not take is read again as plain JSON and judged place by place, so that every complaint is worded once.
    """

    def __init__(self, schema: FeatureSchema, *, max_instances: int) -> None:
        """Make the decoder: modalities are flat vectors (null where missing), objects of named features, or absent."""
        self.schema, self._max_instances = schema, max_instances
        fields = {f"m{position}": name for position, name in enumerate(schema.names)}  # a modality may be called `class`
        modality = list[float | None] | dict[str, Any] | None
        record = defstruct(
            "Record",
            [("id", str | int | None, None), *((field, modality, None) for field in fields)],
            rename=fields,
            forbid_unknown_fields=True,
        )
        envelope: list[tuple[str, Any] | tuple[str, Any, Any]] = [("instances", list[record]), ("explain", Explain, True)]  # type: ignore[valid-type]
        self._decoder: Decoder[Any] = Decoder(defstruct("Envelope", envelope, forbid_unknown_fields=True))
        self._fields = fields

    def read(self, body: bytes) -> ParsedRequest:
        """Read one request. Raises `InvalidJsonError`, and `InvalidInputError` where the envelope is wrong."""
        records, explain, prefix = self._opened(body)
        if len(records) > self._max_instances:
            msg = f"must hold at most {self._max_instances} instances, found {len(records)}"
            raise InvalidInputError(f"instances {msg}", [Problem(("instances",), "too_long", msg)])
        locs: Iterator[Loc] = ((*prefix, i) if prefix else () for i in range(len(records)))
        instances = [read_instance(record, loc, self.schema) for record, loc in zip(records, locs, strict=True)]
        unread = Unread(lambda reader: reader.records(body), len(body))
        return ParsedRequest(instances, explain is not False, explain == "features", unread)

    def records(self, body: bytes) -> list[Any]:
        """The records of one request, each as it was sent. Raises what `read` raises."""
        return self._opened(body)[0]

    def _opened(self, body: bytes) -> Opened:
        return self._decoded(body) or _open_envelope(read_json(body), self.schema)

    def _decoded(self, body: bytes) -> Opened | None:
        try:
            envelope = self._decoder.decode(body)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not 0 < len(envelope.instances) <= self._max_instances:
            return None
        return [self._as_mapping(record) for record in envelope.instances], envelope.explain, ("instances",)

    def _as_mapping(self, record: Any) -> dict[str, Any]:
        values = ((name, getattr(record, field)) for field, name in self._fields.items())
        return {"id": record.id} | {n: np.array(v, np.float64) if isinstance(v, list) else v for n, v in values}


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds. Raises `InvalidJsonError`."""
    if not body.strip():
        raise InvalidJsonError("expected a JSON object, found an empty body")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJsonError(_why_unreadable(body, str(error))) from None
    if not isinstance(document, dict):
        raise InvalidJsonError(f"expected a JSON object, found {kind_of(document)}")
    return document


def _why_unreadable(body: bytes, error: str) -> str:
    """What is wrong with a body that is not JSON; NaN and infinity, which many writers emit, are told by name."""
    where = _POSITION.search(error)
    place = f" ({where.group()})" if where else ""
    try:
        from_json(body, allow_inf_nan=True)
    except ValueError:
        return f"the body is not JSON{place}"
    return f"expected finite numbers, or null for a missing value, found NaN or infinity, which JSON does not have{place}"


def _open_envelope(document: dict[str, Any], schema: FeatureSchema) -> Opened:
    if "instances" not in document and any(name in schema.names for name in document):
        record = {name: value for name, value in document.items() if name != "explain" or name in schema.names}
        switches = {name: value for name, value in document.items() if name not in record}
        return [record], _checked({"instances": [record], **switches}).explain, ()
    envelope = _checked(document)
    return envelope.instances, envelope.explain, ("instances",)


def _checked(envelope: dict[str, Any]) -> PredictRequest:
    try:
        return PredictRequest.model_validate(envelope)
    except ValidationError as error:
        raise refused(error) from None


def refused(error: ValidationError) -> InvalidInputError:
    """What is wrong with an envelope, as a client reads it."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    problems = [Problem(e["loc"], e["type"], e["msg"]) for e in found]
    return InvalidInputError(headline(problems), problems)


def read_instance(record: Any, loc: Loc, schema: FeatureSchema) -> Instance:
    """One record encoded, or what is wrong with it; `loc` is the path that leads to it."""
    if not isinstance(record, Mapping):
        return Instance(None, None, (Problem(loc, "record_type", f"must be an object of modalities, found {kind_of(record)}"),))
    record_id = record.get("id")
    problems = []
    if isinstance(record_id, bool) or not isinstance(record_id, str | int | None):
        record_id = None
        problems.append(Problem((*loc, "id"), "id_type", f"must be a string or an integer, found {kind_of(record.get('id'))}"))
    try:
        encoded = schema.encode(record)
    except InvalidRecordError as error:
        problems += [problem.under(*loc) for problem in error.problems]
        return Instance(record_id, None, tuple(problems))
    return Instance(record_id, None if problems else encoded, tuple(problems))
