"""Everything a client can be refused with, as one tree, and the one shape in which it is told.

    ApiError
      InvalidJsonError          400  the body cannot be read
      UnauthorizedError         401  nobody that this service knows
      ForbiddenError            403  somebody who may not do this
      NotFoundError             404  there is nothing at this path
      MethodNotAllowedError     405  not with this method
      ReloadFailedError         409  the bundle that is there cannot be served; the old one is
      PreconditionError         412  data that the answer needs was not sent
      BodyTooLargeError         413  more than MAX_BODY_BYTES
      MediaTypeError            415  not JSON
      InvalidInputError         422  read, but not a request this model can answer; lists every place
      RateLimitedError          429  more often than this key may
      InternalError             500  a fault of the service
        InferenceFailedError    500  the model failed on every instance
      OverloadedError           503  the queue is full; try again
      NotReadyError             503  no model is ready to answer
      NotKeptApiError           503  a prediction could not be kept, and must be
      DeadlineError             504  not answered in time

Shape: `{"error", "code", "detail": [{"loc", "type", "msg"}], "request_id"}`, or an OperationOutcome where FHIR is spoken. No text
here holds a patient's value.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from pydantic_core import to_json
from starlette.requests import HTTPConnection
from starlette.responses import Response

from service.api.negotiation import FHIR_JSON, answers_fhir
from service.bundle.errors import Problem
from service.clinical.outcome import operation_outcome

MAX_DETAILS = 100  # problems told per request; the count of the rest follows


class ApiError(Exception):
    """Refuses a request. `status` and `code` belong to the class, the sentence to the occasion."""

    status: int = 500
    code: str = "INTERNAL"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, detail: Sequence[Problem] = ()) -> None:
        """Keep the sentence and the places."""
        super().__init__(message)
        self.message = message
        self.detail = tuple(detail)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to this error."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class InvalidJsonError(ApiError):
    """The body is not JSON text."""

    status, code = 400, "INVALID_JSON"


class UnauthorizedError(ApiError):
    """The caller did not show who it is with a key or token that this service trusts."""

    status, code = 401, "UNAUTHORIZED"

    @property
    def headers(self) -> dict[str, str]:
        """How to show it (RFC 6750)."""
        return {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ApiError):
    """The caller is known and may not do this."""

    status, code = 403, "FORBIDDEN"


class NotFoundError(ApiError):
    """Nothing is served here."""

    status, code = 404, "NOT_FOUND"


class MethodNotAllowedError(ApiError):
    """The path exists, the method does not."""

    status, code = 405, "METHOD_NOT_ALLOWED"


class ReloadFailedError(ApiError):
    """The bundle that is there now cannot be served; the one before still is."""

    status, code = 409, "RELOAD_FAILED"


class PreconditionError(ApiError):
    """The answer needs data that was not sent with the request."""

    status, code = 412, "DATA_MISSING"


class BodyTooLargeError(ApiError):
    """The body is larger than the service reads."""

    status, code = 413, "BODY_TOO_LARGE"


class MediaTypeError(ApiError):
    """The body is declared to be something that is not JSON."""

    status, code = 415, "UNSUPPORTED_MEDIA_TYPE"


class InvalidInputError(ApiError):
    """The body is JSON, but not a request that can be answered."""

    status, code = 422, "INVALID_INPUT"


class RateLimitedError(ApiError):
    """A key is used more often than it may be."""

    status, code = 429, "RATE_LIMITED"

    def __init__(self, message: str, wait_s: int) -> None:
        """Keep after how many seconds the key may be used again."""
        super().__init__(message)
        self._wait_s = wait_s

    @property
    def headers(self) -> dict[str, str]:
        """When to try again."""
        return {"Retry-After": str(self._wait_s)}


class InternalError(ApiError):
    """A fault of the service; the log says more."""


class InferenceFailedError(InternalError):
    """The model failed, or answered with something that is not a number, for every instance."""

    code = "INFERENCE_FAILED"


class OverloadedError(ApiError):
    """Too much is waiting already."""

    status, code, retry_after_s = 503, "OVERLOADED", 1

    def __init__(self, what: str = "samples are waiting") -> None:
        """Say too many of what."""
        super().__init__(f"too many {what}; try again after the time in Retry-After")


class NotReadyError(ApiError):
    """No model is loaded, or the service is going down."""

    status, code, retry_after_s = 503, "MODEL_NOT_READY", 5


class NotKeptApiError(ApiError):
    """The audit store failed, and no prediction may be given that is not kept."""

    status, code, retry_after_s = 503, "NOT_KEPT", 5


class DeadlineError(ApiError):
    """Not answered in time."""

    status, code = 504, "TIMEOUT"


class OtherHttpError(ApiError):
    """A refusal by the framework that none of the classes above words."""

    def __init__(self, status: int) -> None:
        """Word an HTTP status by its standard phrase."""
        super().__init__(HTTPStatus(status).phrase)
        self.status, self.code = status, f"HTTP_{status}"


def tell(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Problems as a client reads them: the first `MAX_DETAILS`, then how many more there are."""
    told: list[dict[str, Any]] = [{"loc": list(p.loc), "type": p.type, "msg": p.msg} for p in problems[:MAX_DETAILS]]
    if len(problems) > MAX_DETAILS:
        told.append({"loc": [], "type": "more_problems", "msg": f"and {len(problems) - MAX_DETAILS} more problems"})
    return told


def error_response(
    error: ApiError, request_id: str, headers: Mapping[str, str] | None = None, *, connection: HTTPConnection
) -> Response:
    """The error as the response a client gets, in the format that its request is answered in."""
    if answers_fhir(connection):
        body, media_type = operation_outcome(error.status, error.message, error.detail[:MAX_DETAILS]), FHIR_JSON
    else:
        body = {"error": error.message, "code": error.code, "detail": tell(error.detail), "request_id": request_id}
        media_type = "application/json"
    told = {**error.headers, **(headers or {})}
    return Response(to_json(body), status_code=error.status, headers=told, media_type=media_type)
