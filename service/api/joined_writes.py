"""One packet an answer: uvicorn hands head and body to the system one after the other, and each costs what a whole answer costs.

The second write is a second packet and wakes the client a second time: under load half of what the kernel does for the service.
Here what is written within one turn of the event loop goes out together, at its end.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.auto import AutoHTTPProtocol

_AT_ONCE_BYTES = 1 << 16  # what is larger is worth packets of its own, and lets the transport say when its client is slow


class JoinedWrites:
    """A transport that writes once a turn; in all else the transport given."""

    __slots__ = ("_loop", "_parts", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Send `data` with what else is written in this turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data if type(data) is bytes else bytes(memoryview(data)))  # others may change within the turn
        self._size += len(data)
        if self._size >= _AT_ONCE_BYTES:
            self._flush()

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Send them."""
        for part in parts:
            self.write(part)

    def write_eof(self) -> None:
        """Say that nothing follows, once all is sent."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close once all is sent."""
        self._flush()
        self._transport.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Leave the connection to another protocol, behind what was written."""
        self._flush()
        self._transport.set_protocol(protocol)

    def _flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class JoiningProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # of two, by what is installed
    """uvicorn's own HTTP protocol, whose answers are one write each."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin with a client."""
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))


def join_writes() -> None:
    """Servers that uvicorn starts in this process from now on. BentoML leaves the choice of a protocol to uvicorn's "auto"."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{JoiningProtocol.__name__}"
