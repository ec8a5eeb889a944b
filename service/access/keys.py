"""API keys: who may do what, and how often. `python -m service.access new NAME --scopes predict` makes one.

A key is 32 random bytes, shown once. The file keeps its sha256, which is enough for what cannot be guessed (a slow hash
protects words that people choose), so whoever reads the file cannot call the service. Several keys are valid at once: to rotate
one, add its successor, let clients change over, remove it. The file is read again when it changes.
"""

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.bundle.documents import MAX_TOML_BYTES, DocumentError, parse_toml, read_file
from service.bundle.errors import one_line

Scope = Literal["predict", "explain", "metrics", "audit", "outcomes", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_PREFIX = "i2moe_"  # so that a key that leaks is found by whoever searches for keys
_LOOK_EVERY_S = 1.0
logger = logging.getLogger("i2moe.keys")


class KeysError(ValueError):
    """A file of keys cannot be used; the message holds no key and no hash."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class KeyEntry(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope] = Field(min_length=1)
    per_second: float | None = Field(default=None, ge=1e-6, le=1e6)  # requests on average; None: as many as the service takes
    burst: int = Field(default=20, ge=1, le=1_000_000)  # requests at once after a pause


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: tuple[KeyEntry, ...] = Field(min_length=1)


@dataclass(slots=True)
class Allowance:
    """A bucket of tokens: `burst` of them at most, `per_second` come back."""

    per_second: float
    burst: int
    clock: Callable[[], float] = time.monotonic
    _tokens: float = field(init=False)
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._tokens, self._since = float(self.burst), self.clock()

    def take(self) -> int:
        """0 where one more request may pass, else after how many seconds it may."""
        now = self.clock()
        self._tokens = min(self.burst, self._tokens + (now - self._since) * self.per_second)
        self._since = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        return math.ceil((1 - self._tokens) / self.per_second)


class Keys:
    """The keys of a file, followed while it changes.

    A change that cannot be read leaves the keys as they were, is told once in the log, and is tried again until it can be.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raises `KeysError`."""
        self._path = path
        self._stamp, self._entries = _stamp(path), read_keys(path)  # in this order: a change in between is seen later
        self._problem: str | None = None  # with the file as it is now
        self._allowances: dict[str, Allowance] = {}
        self._looked = time.monotonic()

    def find(self, token: str) -> KeyEntry | None:
        """Whose key this is; None where it is nobody's. Takes as long for any token."""
        self._follow()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def wait_s(self, entry: KeyEntry) -> int:
        """0 where a key may be used now, else after how many seconds."""
        if entry.per_second is None:
            return 0
        allowance = self._allowances.get(entry.sha256)
        if allowance is None or (allowance.per_second, allowance.burst) != (entry.per_second, entry.burst):
            allowance = self._allowances[entry.sha256] = Allowance(entry.per_second, entry.burst)
        return allowance.take()

    def _follow(self) -> None:
        if (now := time.monotonic()) - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        if (stamp := _stamp(self._path)) == self._stamp:
            self._problem = None
            return
        try:
            self._entries = read_keys(self._path)
        except KeysError as error:
            self._tell(str(error))
            return
        self._stamp, self._problem = stamp, None
        self._allowances = {sha256: a for sha256, a in self._allowances.items() if sha256 in {e.sha256 for e in self._entries}}

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("%s; the keys from before stay", problem)
        self._problem = problem


class NoKeys:
    """Of a file that cannot be used: nobody has a key."""

    def find(self, token: str) -> None:
        """Nobody's."""
        del token

    def wait_s(self, entry: KeyEntry) -> int:
        """Never asked."""
        del entry
        return 0


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The keys of a file. Raises `KeysError`."""
    try:
        entries = _KeysFile.model_validate(parse_toml(read_file(path, MAX_TOML_BYTES))).keys
    except (OSError, DocumentError) as error:  # a parser's words might hold a key
        raise KeysError(f"{path}: cannot be read as TOML ({type(error.__cause__ or error).__name__})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise KeysError(f"{path}: {place}: {first['msg']}") from None
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in entries]
        if len(set(values)) != len(values):
            raise KeysError(f"{path}: expected every {what} once, found one twice")
    return entries


def new_key(name: str, scopes: list[Scope], per_second: float | None = None) -> tuple[str, str]:
    """A key for its owner, and the lines of the file that let it in. Raises `KeysError`."""
    token = f"{_PREFIX}{secrets.token_urlsafe(32)}"
    try:
        entry = KeyEntry(
            name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), scopes=frozenset(scopes), per_second=per_second
        )
    except ValidationError as error:
        raise KeysError(f"{name}: {error.errors(include_url=False, include_input=False)[0]['msg']}") from None
    listed = ", ".join(f'"{scope}"' for scope in sorted(entry.scopes))
    lines = ["[[keys]]", f'name = "{entry.name}"', f'sha256 = "{entry.sha256}"', f"scopes = [{listed}]"]
    if per_second is not None:
        lines.append(f"per_second = {per_second!r}")
    return token, "\n".join(lines) + "\n"


_BEARER = re.compile(r"(?i:Bearer) +([\x21-\x7e]+)")


def bearer_token(authorization: str) -> str | None:
    """The token of an Authorization header (RFC 6750); None where it holds none."""
    match = _BEARER.fullmatch(authorization.strip())
    return None if match is None else match[1]
