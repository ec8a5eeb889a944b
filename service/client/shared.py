"""What both clients are made of: settings, how a call becomes a request, and what its failure is called."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import httpx

from service.client import calls
from service.client.calls import Call, Record
from service.client.credentials import Headers
from service.client.errors import AnswerError, GivenUpError, NoAnswerError, ServiceError
from service.client.results import Prediction, PredictResponse
from service.client.retries import STANDARD, Retries

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Ask = TypeVar("Ask", bound=Callable[[], object])  # what gives access tokens


class Shared(ABC, Generic[Http, Ask]):
    """Settings, and what leads from a call to a request."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        token: str | Ask | None = None,
        retries: Retries = STANDARD,
        timeout_s: float = 15.0,
        max_instances: int = 256,
        max_bytes: int = 1_900_000,
        http: Http | None = None,
    ) -> None:
        """Connect nothing yet. Raises `ValueError`.

        Args:
            url: where the service is, such as http://127.0.0.1:3000.
            key: an API key, where the service has keys.
            token: in its place an access token, or what gives one: it is asked when the first is needed, and again when the
                service refuses the last (401), by one call at a time. For `AsyncClient` it may be asynchronous.
            retries: how often and how long a call is tried.
            timeout_s: for connecting, and for each wait for bytes of an answer; above the service's I2MOE_TIMEOUT_S.
            max_instances: records in one request; at most the service's I2MOE_MAX_INSTANCES.
            max_bytes: of the records in one request; below the service's I2MOE_MAX_BODY_BYTES.
            http: to use in place of a client of its own, for certificates or proxies; it is not closed.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"expected a URL that begins with http:// or https://, found {url!r}")
        if not (timeout_s > 0 and max_instances > 0 and max_bytes > 0):
            raise ValueError(f"expected limits above zero, found {timeout_s=}, {max_instances=}, {max_bytes=}")
        self._url, self._retries, self._timeout_s = url.rstrip("/"), retries, timeout_s
        self._max_instances, self._max_bytes = max_instances, max_bytes
        self._owns = http is None
        self._begin(http, key=key, token=token)

    @abstractmethod
    def _begin(self, http: Http | None, *, key: str | None, token: str | Ask | None) -> None:
        """Its kind of HTTP client, a new one where none is given, and its kind of credentials."""

    def _options(self, call: Call[Any], request_id: str, shown: Headers) -> dict[str, Any]:
        return {"content": call.body, "headers": {"X-Request-ID": request_id, **shown, **call.headers}}

    def _timeout(self, left_s: float) -> float:
        return min(self._timeout_s, left_s)

    def _chunks(self, records: Iterable[Record]) -> Iterator[list[bytes]]:
        return calls.chunks(records, max_instances=self._max_instances, max_bytes=self._max_bytes)


def failed(error: httpx.RequestError) -> ServiceError:
    """What an attempt without an answer ends with."""
    match error:
        case httpx.DecodingError():
            return AnswerError("expected a body in the encoding that its header names, found something else")
        case httpx.TimeoutException():
            kind: type[ServiceError] = GivenUpError
        case _:
            kind = NoAnswerError
    return kind(f"no answer: {type(error).__name__}")


def check_concurrency(concurrency: int) -> None:
    """Raises `ValueError`."""
    if concurrency < 1:
        raise ValueError(f"expected at least one request at a time, found {concurrency=}")


def only(answer: PredictResponse) -> Prediction:
    """The answer to one record."""
    (prediction,) = answer.predictions
    assert isinstance(prediction, Prediction)  # one record that does not fit refuses its request
    return prediction


def request_id_of(given: str | None) -> str:
    """What all attempts of a call carry. Raises `ValueError`."""
    return uuid.uuid4().hex if given is None else calls.checked_id(given)
