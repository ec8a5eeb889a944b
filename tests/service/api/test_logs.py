"""Log lines as text and as JSON: what they hold, what they never do, and whose they are."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.api.logs import (
    FIELDS,
    JsonFormatter,
    Served,
    TextFormatter,
    begin_served,
    configure_logging,
    configure_server_logs,
    end_served,
    places,
)

SENTINEL = "ZQX7731"


@pytest.fixture
def served() -> Iterator[None]:
    """Inside a traced request."""
    token = begin_served(Served("r1", "a" * 32))
    yield
    end_served(token)


def record(message: str = "hello", **changes: Any) -> logging.LogRecord:
    line = logging.LogRecord("i2moe.http", logging.WARNING, "file.py", 1, message, (), None)
    line.__dict__.update(changes)
    return line


def test_a_json_line_is_one_object_on_one_line() -> None:
    """Time in UTC, level, logger and message; no request where there is none."""
    line = JsonFormatter().format(record("two\nlines", created=0.25))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "WARNING",
        "logger": "i2moe.http",
        "message": "two\nlines",
    }


@pytest.mark.usefixtures("served")
def test_lines_of_a_request_name_it() -> None:
    """As JSON the request and its trace; as text the trace, since messages name the request where it matters."""
    told = json.loads(JsonFormatter().format(record(**{FIELDS: {"status": 200}})))
    assert (told["request_id"], told["trace_id"], told["status"]) == ("r1", "a" * 32, 200)
    assert TextFormatter().format(record()).endswith(f"WARNING i2moe.http: hello trace={'a' * 32}")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_is_told_by_its_places(formatter: logging.Formatter) -> None:
    """Of whoever logs one: its type and the code lines, not its text."""
    try:
        raise ValueError(f"could not convert {SENTINEL}")
    except ValueError as error:
        line = formatter.format(record(exc_info=(type(error), error, error.__traceback__)))
    assert "ValueError" in line
    assert "test_logs.py" in line
    assert f"convert {SENTINEL}" not in line


def test_what_caused_an_exception_is_told_too() -> None:
    """Named or not, down to the first; where a driver failed is often there."""
    try:
        try:
            raise KeyError(SENTINEL)
        except KeyError:
            raise ValueError(SENTINEL) from None
    except ValueError as error:
        told = places(error)
    assert told.index("ValueError") < told.index("caused by KeyError")
    assert told.count("test_logs.py") == 2


def test_the_servers_lines_go_through_one_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of uvicorn or BentoML is written once, as JSON."""
    root, server = logging.getLogger(), logging.getLogger("uvicorn.error")
    for logger in (root, *map(logging.getLogger, ("bentoml", "uvicorn", "uvicorn.access", "uvicorn.asgi", "circus"))):
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))
        monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(server, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(server, "propagate", server.propagate)
    configure_server_logs()
    (handler,) = root.handlers
    assert isinstance(handler.formatter, JsonFormatter)
    assert (server.handlers, server.propagate) == ([], True)


def test_the_format_may_be_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines go to one handler however often the service is started in a process."""
    logger = logging.getLogger("i2moe")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr("service.api.logs.configure_server_logs", lambda: None)
    configure_logging("INFO", "json")
    configure_logging("DEBUG", "text")
    (handler,) = logger.handlers
    assert isinstance(handler.formatter, TextFormatter)
