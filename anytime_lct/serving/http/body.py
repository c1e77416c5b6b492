"""The body of a request, read and decompressed within bounds of size and time."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from anytime_lct.serving.limits import Holding, Limits, too_large
from anytime_lct.serving.request import ClientGone, Refusal

Scope = Any
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Body = bytes | bytearray  # a large one is not copied
# Extension of ASGI with which our connections say that the whole body is here: it needs no timer.
WHOLE = "anytime_lct.whole"
# zlib's window bits: for the header of gzip, or that of zlib, which "deflate" means.
WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
STEP = 1 << 20  # bytes decompressed at a time; memory is taken for each step
PIECE = 1 << 16
MIN_PACKED_SIZE = 1024


async def read_body(scope: Scope, receive: Receive, limits: Limits, holding: Holding) -> Body:
    """Read the body of a request and decompress it.

    Raises Refusal (too large, too slow, unknown encoding, damaged), Overloaded and ClientGone.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    encoding = headers.get(b"content-encoding", b"").strip().lower() or b"identity"
    if encoding != b"identity" and encoding not in WINDOW_BITS:
        raise Refusal(
            f"Expected Content-Encoding gzip or deflate, got '{encoding[:40].decode('latin-1')}'; use one of them.",
            "encoding",
        )
    length = headers.get(b"content-length", b"")
    if length.isdigit() and (len(length) > 15 or int(length) > limits.body):
        raise too_large(limits.body)
    if WHOLE in scope.get("extensions", ()):
        body = await _collect(receive, limits, holding)
    else:
        try:
            async with asyncio.timeout(limits.read_seconds):
                body = await _collect(receive, limits, holding)
        except TimeoutError:
            raise Refusal(
                f"Expected the whole body within {limits.read_seconds:g} s, got a part of it; send it faster.", "slow"
            ) from None
    return body if encoding == b"identity" else await _decompress(body, WINDOW_BITS[encoding], limits, holding)


def compress(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """Compress a body where the client accepts it and it saves bytes; return it and its encoding."""
    if len(body) < MIN_PACKED_SIZE:
        return body, None
    names = set()
    for part in accepted.lower().split(b","):
        name, _, quality = part.strip().partition(b";")
        if quality.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"):
            names.add(name.strip())
    for name, function in ((b"gzip", gzip.compress), (b"deflate", zlib.compress)):
        if name in names:
            compressed = function(body, 1)
            return (compressed, name) if len(compressed) < 0.9 * len(body) else (body, None)
    return body, None


async def _collect(receive: Receive, limits: Limits, holding: Holding) -> Body:
    body = bytearray()  # not a list: parts may be single bytes
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if len(body) + len(part) > limits.body:
            raise too_large(limits.body)
        holding.take(len(part))
        if not more and not body:
            return part
        body += part
        if not more:
            return body


async def _decompress(body: Body, bits: int, limits: Limits, holding: Holding) -> bytes:
    """Decompress in steps, in a thread; a compression bomb is stopped at the limit."""
    decompressor = zlib.decompressobj(bits)
    parts: list[bytes] = []
    size = offset = 0
    pending = part = b""
    while not decompressor.eof:
        if not pending and len(part) < STEP:  # after a full part there may be more output without more input
            pending = bytes(body[offset : offset + PIECE])
            offset += PIECE
            if not pending:
                raise Refusal("Expected a complete compressed body, got a part of one; send all of it.")
        try:
            part = await asyncio.to_thread(decompressor.decompress, pending, STEP)
        except zlib.error:
            raise Refusal("Expected a body in its Content-Encoding, got other bytes; compress it again.") from None
        pending = decompressor.unconsumed_tail
        size += len(part)
        if size > limits.body:
            raise too_large(limits.body)
        holding.take(len(part))
        parts.append(part)
    if decompressor.unused_data or offset < len(body):
        raise Refusal("Expected one compressed body, got bytes behind its end; leave them out.")
    return b"".join(parts)
