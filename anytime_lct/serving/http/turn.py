"""One request and its response on a connection: a turn, as messages of ASGI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

from anytime_lct.errors import LCTError
from anytime_lct.serving.http.body import WHOLE, Message
from anytime_lct.serving.http.parser import Head, Malformed
from anytime_lct.serving.request import ClientGone, Refusal
from anytime_lct.serving.v2.json_text import write_json

App = Callable[[Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
ASGI = {"version": "3.0", "spec_version": "2.3"}
STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HIGH_WATER = 1 << 16  # bytes of a body that wait for the app; then no more are read from the socket
log = logging.getLogger(__name__)


class Peer(Protocol):
    """What a turn needs of its connection."""

    is_draining: bool

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...

    async def until_writable(self) -> None:
        """Wait until the client has taken most of what was sent, or is gone."""
        ...

    def pace(self) -> None:
        """Count what waits, and read from the client unless its turn is full."""
        ...

    def end_turn(self, *, is_answered: bool, closes: bool) -> None:
        """Start the next turn, or close the connection."""
        ...


class Turn:
    """Runs the app for one request. The connection adds the body as it arrives, and reports when the client is gone."""

    def __init__(self, line: Peer, head: Head) -> None:
        self._line, self._head = line, head
        self._body = bytearray()
        self._changed = asyncio.Event()
        self._error: LCTError | None = None
        self._start: bytes | None = None  # status line and headers, until they are sent
        self._must_continue = head.expects_continue
        self._is_answered = self._is_gone = self._closes = False
        self.is_whole = False  # the request has arrived to its end
        self.is_read = False  # the app has all of its body

    @property
    def size(self) -> int:
        """Number of bytes of the head, and of the body that waits for the app."""
        return self._head.size + len(self._body)

    @property
    def is_full(self) -> bool:
        """Whether so much of the body waits for the app that no more should be read."""
        return len(self._body) > HIGH_WATER

    def add(self, part: bytes) -> None:
        """Add a part of the body."""
        self._body += part
        self._changed.set()

    def complete(self) -> None:
        """Record the end of the body."""
        self.is_whole = True
        self._changed.set()

    def refuse(self, error: LCTError) -> None:
        """Let the app read an error in place of what it has not read of the body."""
        self._error = error
        self._body.clear()
        self._changed.set()

    def leave(self) -> None:
        """Record that there is no client to answer."""
        self._is_gone = True
        self._changed.set()

    async def run(self, app: App, constants: dict[str, Any]) -> None:
        """Let the app answer; then the connection goes on, or closes where there is no whole answer.

        `constants` is the part of the scope that all requests of the connection share.
        """
        head = self._head
        path, _, query = head.target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http", "asgi": ASGI, "root_path": "", **constants, "method": head.method,
            "http_version": head.version, "headers": head.headers, "path": unquote(path.decode("ascii")),
            "raw_path": path, "query_string": query, "extensions": {WHOLE: {}} if self.is_whole else {},
        }  # fmt: skip
        try:
            await app(scope, self._receive, self._send)
        except ClientGone:
            pass
        except Exception as error:
            log.error("The server failed to answer %s %s.", head.method, path.decode("ascii"), exc_info=error)
        finally:
            self._line.end_turn(is_answered=self._is_answered, closes=self._closes)

    async def _receive(self) -> Message:
        if self._must_continue:
            self._must_continue = False
            self._line.write(CONTINUE)
        while not (self._is_gone or self._is_answered):
            if isinstance(self._error, Malformed):
                raise Refusal(str(self._error))
            if self._error is not None:
                raise self._error
            if self._body or (self.is_whole and not self.is_read):
                body, self._body = bytes(self._body), bytearray()
                self.is_read = self.is_whole
                self._line.pace()
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._line.until_writable()
        if self._is_gone:
            raise ClientGone
        if message["type"] == "http.response.start":
            self._start = self._write_start(message["status"], list(message.get("headers", ())))
            return
        body: bytes = b"" if self._head.method == "HEAD" else message.get("body", b"")
        start, self._start = self._start or b"", None
        if start and len(body) < HIGH_WATER:
            self._line.write(start + body)
        else:
            self._line.write(start)
            self._line.write(body)
        if not message.get("more_body", False):
            self._is_answered = True
            self._changed.set()

    def _write_start(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        self._must_continue = False
        names = dict(headers)
        # Without its whole body, or the length of the answer, the client cannot tell where the next one starts.
        self._closes = (
            not self._head.keep_alive
            or not self.is_whole
            or self._error is not None
            or self._line.is_draining
            or names.get(b"connection") == b"close"
            or b"content-length" not in names
        )
        if self._closes and b"connection" not in names:
            headers.append((b"connection", b"close"))
        elif not self._closes and self._head.version == "1.0":
            headers.append((b"connection", b"keep-alive"))
        return response_start(status, headers)


def response_start(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the status line and the headers of a response, with the date."""
    lines = [STATUS_LINE[status], b"date: ", _date(int(time.time())), b"\r\n"]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    return b"".join((*lines, b"\r\n"))


def refusal_bytes(status: int, message: str) -> bytes:
    """Return the answer to bytes that are no request, after which the connection closes."""
    body = write_json({"error": message})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return response_start(status, headers) + body


@lru_cache(maxsize=1)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()
