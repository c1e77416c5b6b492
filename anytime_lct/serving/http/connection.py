"""A connection: uvicorn's, with bounds on the size and time of headers, and errors in the protocol's JSON.

uvicorn itself bounds neither the time nor the size of headers, and reports errors in plain text.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.v2.protocol import write_json

DISCARD_SECONDS = 1.0


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the connection class with these limits, for uvicorn's option `http`."""

    class Bounded(BoundedConnection):
        pass

    Bounded.limits = limits
    return Bounded


class BoundedConnection(HttpToolsProtocol):
    """A connection that refuses headers beyond `header_bytes` or `header_seconds`."""

    limits = DEFAULT_LIMITS
    _header_size = 0
    _is_refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"Expected at most {self.limits.connections} connections, got more; try again later.")
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a closed connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, unless headers are too large."""
        if self._is_refused or self.transport.is_closing():
            return
        if self._timer is not None:
            self._header_size += len(data)
            # Bytes that hold complete headers, perhaps with a body behind them, are not too large.
            if self._header_size > self.limits.header_bytes and b"\r\n\r\n" not in data:
                self._refuse(
                    431, f"Expected at most {self.limits.header_bytes} bytes of headers, got more; send fewer."
                )
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start a request, perhaps after others on the same connection."""
        super().on_message_begin()
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Pass the request to the app."""
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP."""
        self._refuse(400, "Expected a request in HTTP/1.1, got other bytes; check the address and the client.")

    def _unsupported_upgrade_warning(self) -> None:
        """Continue in HTTP/1.1 without a warning."""

    def _wait(self) -> None:
        self._header_size = 0
        self._timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(408, f"Expected whole headers within {self.limits.header_seconds:g} s; send them faster.")

    def _refuse(self, status: int, message: str) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # a second response must not follow a part of the first
            return
        body = write_json({"error": message})
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            STATUS_LINE[status] + retry + b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        # Closing while bytes still arrive would discard the response: wait a while.
        self._is_refused = True
        self.transport.write_eof()
        self._timer = self.loop.call_later(DISCARD_SECONDS, self.transport.close)
