"""One connection: uvicorn's, with bounds on headers and their time, and errors in the protocol's words.

uvicorn waits for headers as long as they take, keeps as many bytes of them as come, and tells of errors in
plain text.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from anytime_lct.serving.limits import USUAL, Limits
from anytime_lct.serving.v2.protocol import write_json

PATIENCE = 1.0


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the class of connections within these limits, for uvicorn's `http`."""

    class Bounded(BoundedConnection):
        pass

    Bounded.limits = limits
    return Bounded


class BoundedConnection(HttpToolsProtocol):
    """A connection whose requests have `header_bytes` and `header_seconds` until their headers are whole."""

    limits = USUAL
    _heard = 0
    _is_refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"Expected at most {self.limits.connections} connections, got more; try again later.")
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless headers have become too large."""
        if self._is_refused or self.transport.is_closing():
            return
        if self._timer is not None:
            self._heard += len(data)
            # What has come may hold whole headers and a body behind them: only what stays open is counted.
            if self._heard > self.limits.header_bytes and b"\r\n\r\n" not in data:
                self._refuse(
                    431, f"Expected at most {self.limits.header_bytes} bytes of headers, got more; send fewer."
                )
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request, perhaps behind others on the same connection."""
        super().on_message_begin()
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Hand the request to the app."""
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Tell of bytes that are no HTTP."""
        self._refuse(400, "Expected a request in HTTP/1.1, got other bytes; check the address and the client.")

    def _unsupported_upgrade_warning(self) -> None:
        """Go on in HTTP/1.1: a client may ask for more and has its answer all the same."""

    def _wait(self) -> None:
        self._heard = 0
        self._timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(408, f"Expected whole headers within {self.limits.header_seconds:g} s; send them faster.")

    def _refuse(self, status: int, words: str) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an answer on its way must not be cut in two by this one
            return
        body = write_json({"error": words})
        again = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            STATUS_LINE[status] + again + b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        # To close while bytes still come would take the answer back: hear them out for a while.
        self._is_refused = True
        self.transport.write_eof()
        self._timer = self.loop.call_later(PATIENCE, self.transport.close)
