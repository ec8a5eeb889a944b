"""Log lines: where they go, as text or as JSON, and what an unexpected exception may say.

An exception's text can hold what a client sent ("could not convert string to float: ..."), so it is never logged:
its type and the places in the code it passed are.
"""

import json
import logging
import sys
import traceback
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

LogFormat = Literal["text", "json"]
FIELDS = "i2moe_fields"  # in a record's `extra`: what a line says besides its message, such as a status
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SERVERS = ("bentoml", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "circus")
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
logger = logging.getLogger("i2moe")


@dataclass(frozen=True, slots=True)
class Served:
    """The request that a line is written for."""

    request_id: str
    trace_id: str | None = None  # where traces are exported


_served: ContextVar[Served | None] = ContextVar("i2moe_served", default=None)


def begin_served(served: Served) -> Token[Served | None]:
    """Lines that follow in this context, and in threads started from it, are of this request."""
    return _served.set(served)


def end_served(token: Token[Served | None]) -> None:
    """Lines that follow are of no request."""
    _served.reset(token)


class _Formatter(logging.Formatter):
    """Words exceptions by their places."""

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        return "" if ei[1] is None else places(ei[1])


class TextFormatter(_Formatter):
    """One line for a person, with the trace's id where there is one."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, before an exception."""
        served = _served.get()
        trace = "" if served is None or served.trace_id is None else f" trace={served.trace_id}"
        return super().formatMessage(record) + trace


class JsonFormatter(_Formatter):
    """One JSON object per line: time, level, logger, message; request_id and trace_id where there is a request; exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, on one line whatever the message holds."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (served := _served.get()) is not None:
            told["request_id"] = served.request_id
            if served.trace_id is not None:
                told["trace_id"] = served.trace_id
        told |= getattr(record, FIELDS, {})
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """Send the lines of every "i2moe.*" logger to stderr, once; as JSON, also those of the servers around this one."""
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    if form == "json":
        configure_server_logs()


def configure_server_logs() -> None:
    """Send what BentoML, uvicorn and circus log through the root logger's one handler, as JSON; their levels stay."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().handlers = [handler]
    for name in _SERVERS:
        server = logging.getLogger(name)
        server.handlers, server.propagate = [], True


def places(error: BaseException) -> str:
    """The traceback of `error` and of what caused it: types and code lines, without their texts."""
    told = f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
    cause = error.__cause__ or error.__context__
    return told if cause is None else f"{told}caused by {places(cause)}"
