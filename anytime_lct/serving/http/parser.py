"""Requests of HTTP/1.1, taken apart strictly and within bounds; no sockets.

    feed(bytes) -> next_event(): a Head, bytes of the body, END, or None until more bytes arrive

    request line and fields   `header_bytes`, MAX_FIELDS
    body                      by Content-Length, or in at most MAX_CHUNKS chunks; whoever reads it bounds its size
    chunk extensions,         `header_bytes` in all; they are checked and dropped
    trailer fields

What other programs read in two ways is refused: a request that a proxy sees as one must not be two here.
An Upgrade is ignored, as RFC 9110 allows: the request is answered in HTTP/1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from anytime_lct.errors import LCTError

MAX_FIELDS = 100
MAX_CHUNKS = 1 << 17
SHORT = 1024  # bytes of a head that is remembered for a while: clients repeat theirs
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
# Fields that must not be repeated: two values would mean two requests.
SINGLE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"inference-header-content-length"}
)
END: Literal["end"] = "end"

_LINE = re.compile(rb"([A-Z]+) (?:https?://([!-\"$-.0-~]+))?(/[!-\"$-~]*|\*|) HTTP/1\.([01])")
_LINE_START = re.compile(rb"[A-Z]+(?: .*)?", re.DOTALL)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
_HOST = re.compile(rb"[A-Za-z0-9._~%:\[\]-]*")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;[\t -~\x80-\xff]*)?)")


class Malformed(LCTError, ValueError):  # noqa: N818 - the state of the bytes
    """Bytes that are no request, or one beyond a bound; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Head(NamedTuple):
    """The head of a request: `target` is its path and query, `headers` its fields with names in lower case.

    `size` is the number of its bytes.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    expects_continue: bool
    size: int


Event = Head | bytes | Literal["end"] | None


class RequestParser:
    """Takes the requests of one connection apart, one after another; cannot go on after it has raised Malformed.

    >>> parser = RequestParser(header_bytes=1000)
    >>> parser.feed(b"POST /v2 HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    >>> parser.next_event().method, parser.next_event(), parser.next_event()
    ('POST', b'{}', 'end')
    """

    def __init__(self, header_bytes: int) -> None:
        self._limit = header_bytes
        self._buffer = bytearray()
        self._start()

    def _start(self) -> None:
        self._next: Callable[[], Event] = self._head
        self._searched = 0  # bytes of the buffer without the end of a line, or of the head
        self._spare = self._limit  # bytes left for empty lines, chunk extensions and trailer fields
        self._chunks = 0
        self._left = 0  # bytes of the body, or of the chunk, to come

    @property
    def size(self) -> int:
        """Number of bytes that wait to be taken apart."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """Add bytes of the connection."""
        self._buffer += data

    def clear(self) -> None:
        """Drop the bytes that wait; the parser cannot go on."""
        self._buffer.clear()

    def next_event(self) -> Event:
        """Return the next part of a request, or None where bytes are missing; raises Malformed."""
        return self._next()

    def _head(self) -> Event:
        while self._buffer.startswith(b"\r\n"):  # empty lines before a request, as old clients send
            self._spend(2)
            del self._buffer[:2]
            self._searched = 0
        end = self._buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        if (len(self._buffer) if end < 0 else end) > self._limit:
            raise self._too_large()
        if end < 0:
            self._searched = len(self._buffer)
            if self._buffer and not _LINE_START.fullmatch(self._buffer, 0, 8):
                raise _not_http()
            return None
        raw = self._take(end + 4)[:-4]
        head, length = _read_repeated(raw) if end <= SHORT else read_head(raw)
        self._left = length or 0
        self._next = self._chunk_size if length is None else self._body
        return head

    def _body(self) -> Event:
        if self._left == 0:
            self._start()
            return END
        return self._part()

    def _chunk_size(self) -> Event:
        line = self._line()
        if line is None:
            return None
        match = _CHUNK.fullmatch(line)
        self._chunks += 1
        if match is None or self._chunks > MAX_CHUNKS:
            raise Malformed(
                f"Expected at most {MAX_CHUNKS} chunks, each after its size in hexadecimal digits, got "
                f"{'another line' if match is None else 'more'}; send the body with Content-Length."
            )
        self._spend(len(match[2]))
        self._left = int(match[1], 16)
        self._next = self._chunk if self._left else self._trailer
        return self._next()

    def _chunk(self) -> Event:
        if self._left:
            return self._part()
        if len(self._buffer) < 2:
            return None
        if self._take(2) != b"\r\n":
            raise Malformed("Expected a chunk of the size before it, got a longer one; correct the size.")
        self._next = self._chunk_size
        return self._next()

    def _trailer(self) -> Event:
        while line := self._line():
            self._spend(len(line) + 2)
            if not _FIELD.fullmatch(line):
                raise _not_a_field()
        if line is None:
            return None
        self._start()
        return END

    def _part(self) -> bytes | None:
        if not self._buffer:
            return None
        part = self._take(min(self._left, len(self._buffer)))
        self._left -= len(part)
        return part

    def _line(self) -> bytes | None:
        """Take a line of up to `limit` bytes, without its end."""
        end = self._buffer.find(b"\r\n", max(0, self._searched - 1))
        if (len(self._buffer) if end < 0 else end) > self._limit:
            raise self._too_large()
        self._searched = len(self._buffer) if end < 0 else 0
        return None if end < 0 else self._take(end + 2)[:-2]

    def _take(self, size: int) -> bytes:
        with memoryview(self._buffer) as view:
            part = bytes(view[:size])
        del self._buffer[:size]
        self._searched = 0
        return part

    def _spend(self, size: int) -> None:
        self._spare -= size
        if self._spare < 0:
            raise self._too_large()

    def _too_large(self) -> Malformed:
        return Malformed(f"Expected at most {self._limit} bytes of headers or trailers, got more; send fewer.", 431)


def read_head(raw: bytes) -> tuple[Head, int | None]:
    """Read a request line and fields; return them and the length of the body, None if it comes in chunks.

    Raises Malformed.
    """
    line, *lines = raw.split(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None or (method := match[1].decode()) not in METHODS or not (match[2] or match[3]):
        raise _not_http()
    if len(lines) > MAX_FIELDS:
        raise Malformed(f"Expected at most {MAX_FIELDS} headers, got {len(lines)}; send fewer.", 431)
    headers: list[tuple[bytes, bytes]] = []
    single: dict[bytes, bytes] = {}
    options: set[bytes] = set()
    expects_continue = False
    for each in lines:
        field = _FIELD.fullmatch(each)
        if field is None:
            raise _not_a_field()
        name, value = field[1].lower(), field[2].strip(b" \t")
        headers.append((name, value))
        if name in SINGLE:
            if name in single:
                raise Malformed(f"Expected the header {name.decode()} once, got it again; send one.")
            single[name] = value
        elif name == b"connection":
            options |= {option.strip(b" \t") for option in value.lower().split(b",")}
        elif name == b"expect":
            expects_continue = value.lower() == b"100-continue"
    version = "1.1" if match[4] == b"1" else "1.0"
    _check_host(single.get(b"host"), match[2], version)
    keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
    expects_continue &= version == "1.1"
    head = Head(method, match[3] or b"/", version, headers, keep_alive, expects_continue, len(raw))
    return head, _body_length(single, version)


_read_repeated = lru_cache(maxsize=256)(read_head)


def _check_host(host: bytes | None, authority: bytes | None, version: str) -> None:
    if host is None and version == "1.0":
        return
    if host is None or not _HOST.fullmatch(host) or (authority or host).lower() != host.lower():
        raise Malformed("Expected the header Host, the same as in the request line, got none or another; send it once.")


def _body_length(single: dict[bytes, bytes], version: str) -> int | None:
    length, coding = single.get(b"content-length"), single.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None or version == "1.0":
            raise Malformed(
                "Expected Transfer-Encoding: chunked, without Content-Length and in HTTP/1.1, got another combination; "
                "send Content-Length alone."
            )
        return None
    if length is not None and not _LENGTH.fullmatch(length):
        raise Malformed("Expected Content-Length in up to 19 digits, got something else; send the number of bytes.")
    return int(length or 0)


def _not_http() -> Malformed:
    return Malformed("Expected a request in HTTP/1.1, got other bytes; check the address and the client.")


def _not_a_field() -> Malformed:
    return Malformed("Expected each header on one line as 'name: value', got something else; check the client.")
