"""JSON and TOML files from outside: read whole, within bounds, or refused in words that repeat nothing of them.

What is no regular file is not opened, because a pipe may never end and a device never does. Sizes are bounded, and so are the
parts of a TOML key, because tomllib takes a time that grows with their square. How deep a document may go is the parsers' own
limit.
"""

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20  # a vocabulary of a million words is half of that
MAX_TOML_BYTES = 4 << 20  # written by people, or some thousands of API keys
_MAX_DOTS = 100
_PART = rb"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rb"(?:^|[\[{,])[ \t]*+(?:%s[ \t]*+\.[ \t]*+){%d}" % (_PART, _MAX_DOTS), re.MULTILINE)  # in linear time


class DocumentError(ValueError):
    """A file cannot be read as a document."""


def read_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises `DocumentError`, and OSError where it cannot be opened."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # opening a folder is told by the system
        raise DocumentError("is no regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DocumentError(f"expected {max_bytes:,} bytes at most, found more")
    return content


def _finite(text: str) -> float:
    """A number of a document; NaN and infinity are none, and neither is what no float can hold."""
    if not math.isfinite(number := float(text)):
        raise ValueError("not a finite number")
    return number


def parse_json(content: bytes) -> Any:
    """A JSON document, all of whose numbers are finite. Raises `DocumentError`."""
    try:
        return json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError, MemoryError) as error:
        raise DocumentError(f"cannot be read as JSON ({type(error).__name__})") from error


def parse_toml(content: bytes) -> dict[str, Any]:
    """A TOML document. Raises `DocumentError`; of a syntax error it tells the place."""
    if _LONG_KEY.search(content):
        raise DocumentError(f"is not valid TOML: expected keys of {_MAX_DOTS} parts at most, found more")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DocumentError(f"is not valid TOML: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a number of thousands of digits, nesting without end
        raise DocumentError(f"is not valid TOML ({type(error).__name__})") from error
