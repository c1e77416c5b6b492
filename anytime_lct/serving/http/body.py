"""The body of a request, read within bounds of size and time, and unpacked within them."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from anytime_lct.serving.limits import Holding, Limits, too_large
from anytime_lct.serving.request import ClientGone, Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
# zlib's window bits: with the header of gzip, or of zlib as "deflate" has it.
PACKED = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
STEP = 1 << 20  # bytes unpacked before memory is asked for again
PIECE = 1 << 16
WORTHWHILE = 1024
PATIENCE = 2.0  # seconds for which a client that sends too much is listened to, so that it reads the answer


async def read_body(headers: dict[bytes, bytes], receive: Receive, limits: Limits, holding: Holding) -> bytes:
    """Read a body and unpack it.

    Raises Refusal (too large, too slow, packed in another way, damaged), Overloaded and ClientGone.
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity" and encoding not in PACKED:
        raise Refusal(
            f"Expected Content-Encoding gzip or deflate, got '{encoding[:40].decode('latin-1')}'; send it otherwise.",
            "encoding",
        )
    length = headers.get(b"content-length", b"")
    try:
        if length.isdigit() and (len(length) > 15 or int(length) > limits.body):
            if b"expect" not in headers:  # such a client waits with its body for a word from here
                await _listen(receive, limits)
            raise too_large(limits.body)
        async with asyncio.timeout(limits.read_seconds):
            body = await _collect(receive, limits, holding)
    except TimeoutError:
        raise Refusal(
            f"Expected the whole body within {limits.read_seconds:g} s, got a part of it; send it faster.", "slow"
        ) from None
    return body if encoding == b"identity" else await _unpack(body, PACKED[encoding], limits, holding)


def pack(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """Pack an answer where the client accepts it and it is worthwhile; returns it and its encoding."""
    if len(body) < WORTHWHILE:
        return body, None
    names = set()
    for part in accepted.lower().split(b","):
        name, _, quality = part.strip().partition(b";")
        if quality.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"):
            names.add(name.strip())
    for name, packer in ((b"gzip", lambda: gzip.compress(body, 1)), (b"deflate", lambda: zlib.compress(body, 1))):
        if name in names:
            packed = packer()
            return (packed, name) if len(packed) < 0.9 * len(body) else (body, None)
    return body, None


async def _collect(receive: Receive, limits: Limits, holding: Holding) -> bytes:
    body = bytearray()  # not a list of parts: one may be a single byte
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if len(body) + len(part) > limits.body:
            if more:
                await _listen(receive, limits)
            raise too_large(limits.body)
        holding.take(len(part))
        if not more:
            return bytes(body + part) if body else part
        body += part


async def _listen(receive: Receive, limits: Limits) -> None:
    """Let a client that writes before it reads come to its end, for a while."""
    heard = 0
    try:
        async with asyncio.timeout(PATIENCE):
            while heard <= 4 * limits.body:
                message = await receive()
                heard += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _unpack(body: bytes, bits: int, limits: Limits, holding: Holding) -> bytes:
    """Unpack step by step, beside the event loop; a bomb is put out at the limit."""
    machine = zlib.decompressobj(bits)
    parts: list[bytes] = []
    size = at = 0
    rest = part = b""
    while not machine.eof:
        if not rest and len(part) < STEP:  # a full part may have more behind it that needs no input
            rest = body[at : at + PIECE]
            at += PIECE
            if not rest:
                raise Refusal("Expected a whole packed body, got one cut short; send all of it.")
        try:
            part = await asyncio.to_thread(machine.decompress, rest, STEP)
        except zlib.error:
            raise Refusal(
                "Expected a body packed as its Content-Encoding says, got other bytes; pack it anew."
            ) from None
        rest = machine.unconsumed_tail
        size += len(part)
        if size > limits.body:
            raise too_large(limits.body)
        holding.take(len(part))
        parts.append(part)
    if machine.unused_data or at < len(body):
        raise Refusal("Expected one packed body, got bytes behind its end; leave them out.")
    return b"".join(parts)
