"""Refusals by the HTTP protocol itself: in overload each costs 30 us of CPU in place of 80, and answers need what is left.

Of every request uvicorn makes a scope, a task and a cycle of messages. While the queue is full, a plain request to be scored is
answered as soon as its headers are there, and its body passed over. Whatever is not plain goes on to `RequestMiddleware`, which
refuses it in the same words: requests before the one that is answered, HTTP/1.0, `Expect`, connections that are to be closed
or do not read, clinical callers, whose answers have other forms, and all where traces are kept.
"""

from collections.abc import Callable
from typing import ClassVar

import uvicorn.protocols.http.auto
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import OverloadedError
from service.api.middleware import REQUEST_ID_HEADER, RequestInfo, finish_request, plain_request_id
from service.api.route_labels import INFER_ROUTE, route_label
from service.api.runtime import Runtime

_SHED = frozenset({"/predict", INFER_ROUTE})
_ERROR = OverloadedError()


class SheddingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which asks the runtime before it makes anything of a request."""

    runtime_of: ClassVar[Callable[[], Runtime | None]]
    _passes_over = False  # the body of a request that was refused

    def on_headers_complete(self) -> None:
        """Refuse, or leave the request to uvicorn."""
        runtime = type(self).runtime_of()
        if runtime is None or not runtime.is_full or runtime.tracing is not None or not self._is_plain():
            super().on_headers_complete()
            return
        self._passes_over = True
        info = RequestInfo(plain_request_id(self._header(b"x-request-id")))
        self.transport.write(self._refusal(info.id))
        runtime.metrics.rejected.labels(_ERROR.code).inc()
        finish_request(runtime, info, method="POST", path=self._path, status=_ERROR.status)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._passes_over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of the request; after one that was refused the connection waits for the next."""
        if not self._passes_over:
            super().on_message_complete()
            return
        self._passes_over = False
        self.on_response_complete()

    @property
    def _path(self) -> str:
        return self.url.partition(b"?")[0].decode("latin-1")

    def _is_plain(self) -> bool:
        is_alone = self.cycle is None or self.cycle.response_complete
        return (
            is_alone
            and self.parser.get_method() == b"POST"
            and route_label(self._path) in _SHED
            and "fhir" not in self._header(b"accept")
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
            and not self.flow.write_paused
        )

    def _header(self, wanted: bytes) -> str:
        return next((value.decode("latin-1") for name, value in self.headers if name == wanted), "")

    def _refusal(self, request_id: str) -> bytes:
        body = to_json({"error": _ERROR.message, "code": _ERROR.code, "detail": [], "request_id": request_id})
        headers = {
            **_ERROR.headers,
            REQUEST_ID_HEADER: request_id,
            "Content-Type": "application/json",
            "Content-Length": len(body),
        }
        usual = [b"%s: %s" % pair for pair in self.server_state.default_headers]
        lines = [b"HTTP/1.1 503 Service Unavailable", *usual, *(f"{name}: {value}".encode() for name, value in headers.items())]
        return b"\r\n".join([*lines, b"", body])


def shed_by_protocol(runtime_of: Callable[[], Runtime | None]) -> None:
    """Servers that uvicorn starts in this process from now on refuse like this. BentoML leaves the choice of a protocol to it."""
    SheddingProtocol.runtime_of = staticmethod(runtime_of)
    uvicorn.protocols.http.auto.AutoHTTPProtocol = SheddingProtocol
