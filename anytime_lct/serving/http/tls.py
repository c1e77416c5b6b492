"""TLS between a socket and its connection: a protocol of asyncio below, a transport above, and OpenSSL between them.

    socket -- buffer_updated --> [ incoming -> OpenSSL -> connection.buffer_updated ]
    socket <------- write ------ [ outgoing <- OpenSSL <- write ] <-- connection

state                       ends after          how
handshake                   `header_seconds`    cut off
all others                  those of the connection (connection.py)

asyncio's own TLS reserves 256 KB for every connection, does not count those that are still in their handshake, and
cannot close one direction alone. Here whatever has arrived is decrypted at once: the bytes that wait are those that the
connection counts, as without TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anytime_lct.serving.http.connection import READ, Connection, Connections
from anytime_lct.serving.http.turn import refusal_bytes
from anytime_lct.serving.limits import Limits

PLAIN_HTTP = "Expected TLS, got plain HTTP; ask for https:// instead of http://."


class Tunnel(asyncio.BufferedProtocol, asyncio.Transport):
    """One socket under TLS; `connect` makes the connection that speaks HTTP inside of it, after the handshake."""

    def __init__(
        self, context: ssl.SSLContext, connect: Callable[[], Connection], limits: Limits, connections: Connections
    ) -> None:
        super().__init__()
        self._connect, self._limits, self._connections = connect, limits, connections
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._connection: Connection | None = None
        self._has_eof = self._is_ended = False

    # For the socket:

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the handshake, or cut the socket off where there are too many connections."""
        self._socket = transport
        self._timer = asyncio.get_running_loop().call_later(self._limits.header_seconds, self.abort)
        self._connections.open.add(self)
        if len(self._connections.open) > self._limits.connections:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the connection know that its client is gone."""
        self._timer.cancel()
        self._connections.open.discard(self)
        self._is_ended = True
        if self._connection is not None:
            self._connection.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into, which is also the one into which is decrypted."""
        return self._connections.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what was read."""
        if self._is_ended:
            return
        self._incoming.write(self._connections.buffer[:nbytes])
        try:
            with suppress(ssl.SSLWantReadError):
                connection = self._connection or self._shake_hands()
                while not (self._is_ended or self._has_eof):
                    size: Any = self._tls.read(READ, connection.get_buffer(-1))  # type: ignore[arg-type]
                    if size:
                        connection.buffer_updated(size)
                    else:
                        self.eof_received()
            self._flush()
        except ssl.SSLError as error:
            self._refuse(error)

    def eof_received(self) -> bool:
        """Let the connection answer what has arrived whole."""
        is_first, self._has_eof = not self._has_eof, True
        if self._connection is not None and is_first:
            self._connection.eof_received()
        return self._connection is not None  # the other direction stays open

    def pause_writing(self) -> None:
        """Pass on that the client does not take what was written."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that it has."""
        if self._connection is not None:
            self._connection.resume_writing()

    # For the connection:

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact of the socket, or of TLS."""
        return self._tls if name == "ssl_object" else self._socket.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        """Read no more from the client."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._socket.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt bytes and send them."""
        try:
            self._tls.write(data)
            self._flush()
        except ssl.SSLError:
            self.abort()

    def write_eof(self) -> None:
        """Send the end of the answers; what still arrives is dropped."""
        self._end()
        self._socket.write_eof()

    def close(self) -> None:
        """Send the end of the answers, and close when the client has taken it."""
        self._end()
        self._socket.close()

    def drain(self) -> None:
        """Cut a handshake off: nothing was asked yet."""
        self.abort()

    def abort(self) -> None:
        """Cut the socket off."""
        self._is_ended = True
        self._socket.abort()

    def _shake_hands(self) -> Connection:
        """Return the connection when the handshake is over; raises SSLWantReadError until then."""
        try:
            self._tls.do_handshake()
        finally:
            self._flush()
        self._timer.cancel()
        self._connections.open.discard(self)
        self._connection = self._connect()
        self._connection.connection_made(self)
        return self._connection

    def _refuse(self, error: ssl.SSLError) -> None:
        """End after bytes that are no TLS, with OpenSSL's alert; plain HTTP is answered in plain HTTP."""
        self._is_ended = True
        self._flush()
        if error.reason == "HTTP_REQUEST":
            self._socket.write(refusal_bytes(400, PLAIN_HTTP))
        if self._connection is None:
            self._socket.close()  # the time of the handshake goes on
        else:
            self._socket.abort()

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())
