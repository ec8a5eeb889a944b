"""A client of the HTTP API: typed answers, retries within a deadline, one exception per error code.

    from service.client import Client

    with Client("http://127.0.0.1:3000", key=key) as client:
        print(client.predict({"labs": {"crea": 4.0}}).probability)

`AsyncClient` is the same with `await`. Nothing here imports the service: besides the standard library httpx (the extra
`client`), msgspec and numpy are enough.
"""

from service.client.client import AsyncClient, Client
from service.client.errors import (
    AnswerError,
    BodyTooLargeError,
    DataMissingError,
    ForbiddenError,
    GivenUpError,
    InferenceFailedError,
    InternalError,
    InvalidInputError,
    InvalidJsonError,
    MediaTypeError,
    MethodNotAllowedError,
    NoAnswerError,
    NotFoundError,
    NotKeptError,
    NotReadyError,
    OverloadedError,
    RateLimitedError,
    RefusedError,
    ReloadFailedError,
    ServiceError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)
from service.client.results import (
    FailedPrediction,
    KeptPredictionsResponse,
    ModelResponse,
    OutcomeItem,
    OutcomesResponse,
    Prediction,
    PredictResponse,
)
from service.client.retries import Retries

__all__ = [
    "AnswerError",
    "AsyncClient",
    "BodyTooLargeError",
    "Client",
    "DataMissingError",
    "FailedPrediction",
    "ForbiddenError",
    "GivenUpError",
    "InferenceFailedError",
    "InternalError",
    "InvalidInputError",
    "InvalidJsonError",
    "KeptPredictionsResponse",
    "MediaTypeError",
    "MethodNotAllowedError",
    "ModelResponse",
    "NoAnswerError",
    "NotFoundError",
    "NotKeptError",
    "NotReadyError",
    "OutcomeItem",
    "OutcomesResponse",
    "OverloadedError",
    "PredictResponse",
    "Prediction",
    "RateLimitedError",
    "RefusedError",
    "ReloadFailedError",
    "Retries",
    "ServiceError",
    "TimedOutError",
    "UnauthorizedError",
    "UnavailableError",
]
