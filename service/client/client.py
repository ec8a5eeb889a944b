"""The two clients: calls are made, tried again and read alike; only waiting differs."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import calls
from service.client.calls import Arrays, Call, Explain, Record
from service.client.credentials import AsyncCredentials, Credentials
from service.client.errors import InvalidInputError, ServiceError, UnauthorizedError, refusal
from service.client.results import (
    ExplanationsResponse,
    FailedPrediction,
    KeptPredictionsResponse,
    ModelResponse,
    OutcomeItem,
    OutcomesResponse,
    Prediction,
    PredictResponse,
)
from service.client.retries import Attempts
from service.client.shared import Shared, check_concurrency, failed, only, request_id_of

_T = TypeVar("_T")
_AsksAsync = Callable[[], str | Awaitable[str]]
Answered = Prediction | FailedPrediction


class Client(Shared[httpx.Client, Callable[[], str]]):
    """Calls that wait for their answer. Safe to share among threads."""

    def _begin(self, http: httpx.Client | None, *, key: str | None, token: str | Callable[[], str] | None) -> None:
        self._credentials = Credentials(key=key, token=token)
        self._http = httpx.Client() if http is None else http

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._owns:
            self._http.close()

    def predict(self, record: Record, *, explain: Explain = True, request_id: str | None = None) -> Prediction:
        """Score one record. Raises `InvalidInputError` where it does not fit, and any other `ServiceError`."""
        return only(self.predict_request([record], explain=explain, request_id=request_id))

    def explain(self, record: Record, *, request_id: str | None = None) -> Prediction:
        """Score one record and attribute every expert's contribution to features. Takes many times as long."""
        return self.predict(record, explain="features", request_id=request_id)

    def predict_request(
        self, records: Sequence[Record], *, explain: Explain = True, request_id: str | None = None
    ) -> PredictResponse:
        """One request as it is answered: with the model, the times and the refusals of single records."""
        encoded = [calls.encode_record(record) for record in records]
        return self._call(calls.predict_call(encoded, explain=explain), request_id)

    def predict_many(self, records: Iterable[Record], *, explain: Explain = False, concurrency: int = 4) -> Iterator[Answered]:
        """Score any number of records, in order, in requests of which `concurrency` at most are on their way.

        Records are taken as answers are: a generator of a billion is fine. Records that do not fit are answered with a
        `FailedPrediction`; whatever else fails ends the iteration with its `ServiceError`.
        """
        check_concurrency(concurrency)
        chunks = self._chunks(records)
        with ThreadPoolExecutor(concurrency) as pool:
            waiting = deque(pool.submit(self._predict_chunk, chunk, explain) for chunk in islice(chunks, concurrency))
            try:
                while waiting:
                    answers = waiting.popleft().result()
                    waiting.extend(pool.submit(self._predict_chunk, chunk, explain) for chunk in islice(chunks, 1))
                    yield from answers
            finally:
                _cancel(waiting)

    def _predict_chunk(self, chunk: list[bytes], explain: Explain) -> list[Answered]:
        try:
            return self._call(calls.predict_call(chunk, explain=explain), None).predictions
        except InvalidInputError as error:
            return calls.refused_alike(error, chunk)

    def model(self) -> ModelResponse:
        """What is served: features, task, figures, card, example."""
        return self._call(calls.model_call(), None)

    def explanations(self) -> ExplanationsResponse:
        """How the experts behave over a data set."""
        return self._call(calls.explanations_call(), None)

    def kept(self, request_id: str) -> KeptPredictionsResponse:
        """What was answered under a request id, and what became of it; needs the scope audit. Raises `NotFoundError`."""
        return self._call(calls.kept_call(request_id), None)

    def tell_outcomes(self, outcomes: Sequence[OutcomeItem]) -> OutcomesResponse:
        """Tell what became of predictions, a thousand at most; those that fit none are told in their place. Safe to repeat.

        Raises `InvalidInputError` where none fits.
        """
        return self._call(calls.outcomes_call(outcomes), None)

    def infer(
        self, arrays: Arrays, *, model: str, outputs: Sequence[str] | None = None, request_id: str | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Score records held as arrays: modality -> (records, columns), NaN where missing; answers output -> array.

        `outputs` of prediction, logits, expert_weights, expert_logits, contribution, contribution_share; all, where None.
        """
        return self._call(calls.infer_call(model, arrays, outputs=outputs), request_id)

    def is_ready(self) -> bool:
        """Whether a model is ready to answer; asked once."""
        try:
            return self._http.get(f"{self._url}/v2/health/ready", timeout=self._timeout_s).is_success
        except httpx.RequestError:
            return False

    def _call(self, call: Call[_T], request_id: str | None) -> _T:
        request_id, renewed = request_id_of(request_id), False
        attempts = Attempts(self._retries)
        while True:
            left, shown = attempts.begin(), self._credentials.headers()
            options = self._options(call, request_id, shown)
            try:
                response = self._ask(call, attempts, timeout=self._timeout(left), **options)
            except httpx.RequestError as error:
                failure: ServiceError = failed(error)
            else:
                if response.is_success:
                    return call.read(response)
                failure = refusal(response)
            if isinstance(failure, UnauthorizedError) and not renewed and self._credentials.forget(shown):
                renewed = True
                continue
            time.sleep(attempts.wait_s(failure))

    def _ask(self, call: Call[Any], attempts: Attempts, **options: Any) -> httpx.Response:
        """One attempt. Looks at the clock between pieces of the answer: one that drips would outlast any time-out."""
        with self._http.stream(call.method, self._url + call.path, **options) as response:
            pieces = []
            for piece in response.iter_bytes():
                pieces.append(piece)
                attempts.check()
        headers = response.headers.copy()
        headers.pop("content-encoding", None)  # the pieces are decoded
        return httpx.Response(response.status_code, headers=headers, content=b"".join(pieces))


class AsyncClient(Shared[httpx.AsyncClient, _AsksAsync]):
    """The same calls for asyncio."""

    def _begin(self, http: httpx.AsyncClient | None, *, key: str | None, token: str | _AsksAsync | None) -> None:
        self._credentials = AsyncCredentials(key=key, token=token)
        self._http = httpx.AsyncClient() if http is None else http

    async def __aenter__(self) -> Self:
        """The client."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        if self._owns:
            await self._http.aclose()

    async def predict(self, record: Record, *, explain: Explain = True, request_id: str | None = None) -> Prediction:
        """As `Client.predict`."""
        return only(await self.predict_request([record], explain=explain, request_id=request_id))

    async def explain(self, record: Record, *, request_id: str | None = None) -> Prediction:
        """As `Client.explain`."""
        return await self.predict(record, explain="features", request_id=request_id)

    async def predict_request(
        self, records: Sequence[Record], *, explain: Explain = True, request_id: str | None = None
    ) -> PredictResponse:
        """As `Client.predict_request`."""
        encoded = [calls.encode_record(record) for record in records]
        return await self._call(calls.predict_call(encoded, explain=explain), request_id)

    async def predict_many(
        self, records: Iterable[Record], *, explain: Explain = False, concurrency: int = 4
    ) -> AsyncIterator[Answered]:
        """As `Client.predict_many`."""
        check_concurrency(concurrency)
        chunks = self._chunks(records)
        waiting = deque(asyncio.create_task(self._predict_chunk(chunk, explain)) for chunk in islice(chunks, concurrency))
        try:
            while waiting:
                answers = await waiting.popleft()
                waiting.extend(asyncio.create_task(self._predict_chunk(chunk, explain)) for chunk in islice(chunks, 1))
                for answer in answers:
                    yield answer
        finally:
            _cancel(waiting)
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _predict_chunk(self, chunk: list[bytes], explain: Explain) -> list[Answered]:
        try:
            return (await self._call(calls.predict_call(chunk, explain=explain), None)).predictions
        except InvalidInputError as error:
            return calls.refused_alike(error, chunk)

    async def model(self) -> ModelResponse:
        """As `Client.model`."""
        return await self._call(calls.model_call(), None)

    async def explanations(self) -> ExplanationsResponse:
        """As `Client.explanations`."""
        return await self._call(calls.explanations_call(), None)

    async def kept(self, request_id: str) -> KeptPredictionsResponse:
        """As `Client.kept`."""
        return await self._call(calls.kept_call(request_id), None)

    async def tell_outcomes(self, outcomes: Sequence[OutcomeItem]) -> OutcomesResponse:
        """As `Client.tell_outcomes`."""
        return await self._call(calls.outcomes_call(outcomes), None)

    async def infer(
        self, arrays: Arrays, *, model: str, outputs: Sequence[str] | None = None, request_id: str | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """As `Client.infer`."""
        return await self._call(calls.infer_call(model, arrays, outputs=outputs), request_id)

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get(f"{self._url}/v2/health/ready", timeout=self._timeout_s)).is_success
        except httpx.RequestError:
            return False

    async def _call(self, call: Call[_T], request_id: str | None) -> _T:
        request_id, renewed = request_id_of(request_id), False
        attempts = Attempts(self._retries)
        while True:
            left, shown = attempts.begin(), await self._credentials.headers()
            options = self._options(call, request_id, shown)
            try:
                async with asyncio.timeout(left):
                    response = await self._http.request(
                        call.method, self._url + call.path, timeout=self._timeout(left), **options
                    )
            except httpx.RequestError as error:
                failure: ServiceError = failed(error)
            except TimeoutError:
                raise attempts.given_up() from None
            else:
                if response.is_success:
                    return call.read(response)
                failure = refusal(response)
            if isinstance(failure, UnauthorizedError) and not renewed and self._credentials.forget(shown):
                renewed = True
                continue
            await asyncio.sleep(attempts.wait_s(failure))


def _cancel(waiting: Iterable[Future[Any] | asyncio.Task[Any]]) -> None:
    for one in waiting:
        one.cancel()
