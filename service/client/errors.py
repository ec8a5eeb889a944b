"""Everything that a call can end with instead of an answer, as one tree.

ServiceError
  NoAnswerError             nothing came back: no connection, or it broke
    GivenUpError            not within the time that this client allows
  AnswerError               a success whose body is not what the API promises
  RefusedError              the service said no; one class per `code`
    InvalidJsonError        400  INVALID_JSON
    UnauthorizedError       401  UNAUTHORIZED
    ForbiddenError          403  FORBIDDEN
    NotFoundError           404  NOT_FOUND
    MethodNotAllowedError   405  METHOD_NOT_ALLOWED
    ReloadFailedError       409  RELOAD_FAILED
    DataMissingError        412  DATA_MISSING
    BodyTooLargeError       413  BODY_TOO_LARGE
    MediaTypeError          415  UNSUPPORTED_MEDIA_TYPE
    InvalidInputError       422  INVALID_INPUT
    RateLimitedError        429  RATE_LIMITED
    InternalError           500  INTERNAL
      InferenceFailedError  500  INFERENCE_FAILED
    UnavailableError        503  whatever else says so, such as a proxy
      OverloadedError       503  OVERLOADED
      NotReadyError         503  MODEL_NOT_READY
      NotKeptError          503  NOT_KEPT
    TimedOutError           504  TIMEOUT
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import ClassVar

import httpx
import msgspec

from service.client.results import ErrorDetail, ErrorResponse


class ServiceError(Exception):
    """A call that got no answer."""


class NoAnswerError(ServiceError):
    """No connection, or it broke before the answer was complete."""


class GivenUpError(NoAnswerError):
    """Not answered within the time that this client allows."""


class AnswerError(ServiceError):
    """A success whose body cannot be read: a newer service, or something else that listens there."""


class RefusedError(ServiceError):
    """The service, or something before it, refused the request. Its text never holds a value that was sent."""

    codes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, status: int, told: ErrorResponse, *, retry_after_s: float | None = None) -> None:
        """Keep what was told."""
        super().__init__(f"{told.error} ({status} {told.code}, request {told.request_id or 'unknown'})")
        self.status, self.code, self.message = status, told.code, told.error
        self.detail: tuple[ErrorDetail, ...] = tuple(told.detail)
        self.request_id, self.retry_after_s = told.request_id, retry_after_s


class InvalidJsonError(RefusedError):
    """The body is not JSON text."""

    codes = ("INVALID_JSON",)


class UnauthorizedError(RefusedError):
    """No key, or none that the service knows."""

    codes = ("UNAUTHORIZED",)


class ForbiddenError(RefusedError):
    """The key may not do this."""

    codes = ("FORBIDDEN",)


class NotFoundError(RefusedError):
    """Nothing is served at this path, or there is no such model."""

    codes = ("NOT_FOUND",)


class MethodNotAllowedError(RefusedError):
    """The path exists, the method does not."""

    codes = ("METHOD_NOT_ALLOWED",)


class ReloadFailedError(RefusedError):
    """The bundle that is there now cannot be served; the one before still is."""

    codes = ("RELOAD_FAILED",)


class DataMissingError(RefusedError):
    """The answer needs data that was not sent."""

    codes = ("DATA_MISSING",)


class BodyTooLargeError(RefusedError):
    """The body is larger than the service reads."""

    codes = ("BODY_TOO_LARGE",)


class MediaTypeError(RefusedError):
    """The body is declared to be something that the service does not read."""

    codes = ("UNSUPPORTED_MEDIA_TYPE",)


class InvalidInputError(RefusedError):
    """Not a request that this model can answer; `detail` says where."""

    codes = ("INVALID_INPUT",)


class RateLimitedError(RefusedError):
    """This key or subject is used more often than it may be."""

    codes = ("RATE_LIMITED",)


class InternalError(RefusedError):
    """A fault of the service."""

    codes = ("INTERNAL",)


class InferenceFailedError(InternalError):
    """The model failed on every record."""

    codes = ("INFERENCE_FAILED",)


class UnavailableError(RefusedError):
    """Not now; try again later."""


class OverloadedError(UnavailableError):
    """Too much is waiting already."""

    codes = ("OVERLOADED",)


class NotReadyError(UnavailableError):
    """No model is ready to answer."""

    codes = ("MODEL_NOT_READY",)


class NotKeptError(UnavailableError):
    """The prediction could not be kept, and must be."""

    codes = ("NOT_KEPT",)


class TimedOutError(RefusedError):
    """Not answered within the service's own time."""

    codes = ("TIMEOUT",)


# Who speaks HTTP and not this API, such as a proxy or BentoML's own limits, or a code that this version does not know.
_BY_STATUS: dict[int, type[RefusedError]] = {
    HTTPStatus.UNAUTHORIZED: UnauthorizedError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: BodyTooLargeError,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimitedError,
    HTTPStatus.SERVICE_UNAVAILABLE: UnavailableError,
    HTTPStatus.GATEWAY_TIMEOUT: TimedOutError,
}


def refusal(response: httpx.Response) -> RefusedError:
    """What a response that is no success says."""
    told = _told(response)
    by_code = {code: kind for kind in kinds() for code in kind.codes}
    kind = by_code.get(told.code) or _BY_STATUS.get(response.status_code, RefusedError)
    return kind(response.status_code, told, retry_after_s=_retry_after_s(response.headers.get("retry-after", "")))


def kinds(root: type[RefusedError] = RefusedError) -> Iterator[type[RefusedError]]:
    """Every class of the tree."""
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


def _told(response: httpx.Response) -> ErrorResponse:
    try:
        return msgspec.json.decode(response.content, type=ErrorResponse)
    except msgspec.DecodeError:  # not ours: a proxy's page, for instance
        status, request_id = response.status_code, response.headers.get("x-request-id", "")
        return ErrorResponse(error=response.reason_phrase or "refused", code=f"HTTP_{status}", detail=[], request_id=request_id)


def _retry_after_s(header: str) -> float | None:
    """Seconds, or a date, as RFC 9110 has it; None where there is neither."""
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except (ValueError, OverflowError):  # the second: a year beyond any calendar
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
