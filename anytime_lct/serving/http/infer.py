"""The way of one request over HTTP: bytes, input, the service's reply, bytes. The hot path, in plain ASGI."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from anytime_lct.errors import LCTError
from anytime_lct.serving.http.body import Message, Receive, pack, read_body
from anytime_lct.serving.request import ClientGone, Kind, Overloaded, kind_of
from anytime_lct.serving.service import Service, num_logits
from anytime_lct.serving.v2.protocol import HEADER_LENGTH, read_request, write_json, write_reply

Scope = Any
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")
STATUS: dict[Kind, int] = {
    "invalid": 400, "unknown": 404, "slow": 408, "large": 413, "encoding": 415, "overloaded": 503, "failed": 500,
}  # fmt: skip
UNREAD: tuple[Kind, ...] = ("slow", "large")  # what is left of the body is not read
# What takes a millisecond and more to read or write must not keep the event loop from the others: so many bytes, or
# so many numbers of JSON.
LARGE, MANY = 1 << 18, 1 << 10
PIECE = 1 << 18
NUMBER_IN_JSON = 24  # bytes that a number of an answer may take while it is written


class Infer:
    """The endpoint `/v2/models/{model}/infer`, an ASGI app; raises LCTError for what cannot be answered."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        service, limits, path = self._service, self._service.limits, scope["path_params"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        model = service.find(path["model"], path.get("version"))
        manifest = model.served.manifest
        with service.take(model) as taken:
            body = await read_body(headers, receive, limits, taken.holding)
            length = headers.get(HEADER_LENGTH)
            request = await apart(len(body) > LARGE, read_request, body, length, manifest, limits, service.default)
            taken.holding.take(max(0, request.input_bytes - len(body)))
            x = await apart(request.input_bytes > LARGE, request.read_input)
            text = not all(request.outputs.values())
            taken.holding.take(num_logits(x, manifest) * (NUMBER_IN_JSON if text else 4))
            reply = await service.answer(model, x, request.ask, arrived, partial(_until_gone, receive))
            logits = reply.answer.logits
            slow = logits.size > MANY if text else logits.nbytes > LARGE
            seconds = time.monotonic() - arrived
            answer, json_length = await apart(slow, write_reply, request, model.name, model.version, reply, seconds)
            answer, dressed = await dress(answer, json_length, headers.get(b"accept-encoding"))
            service.engine.sent(reply)
            seconds = time.monotonic() - arrived
            await send_answer(send, answer, dressed, limits.read_seconds)
            taken.written(reply, seconds, request.ask.timeout)  # once it has gone: counting takes time too


async def apart(is_slow: bool, work: Callable[..., T], *given: Any) -> T:
    """Do some work, in a thread where it would keep the event loop from the others."""
    return await asyncio.to_thread(work, *given) if is_slow else work(*given)


async def dress(body: bytes, json_length: int | None, accepted: bytes | None) -> tuple[bytes, Headers]:
    """Return an answer as it goes out, packed if that is wanted and worthwhile, and its headers."""
    headers = [(b"content-type", b"application/json" if json_length is None else b"application/octet-stream")]
    if json_length is not None:
        headers.append((HEADER_LENGTH, b"%d" % json_length))
    if accepted is not None:
        body, encoding = await apart(len(body) > LARGE, pack, body, accepted)
        if encoding is not None:
            headers += [(b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    return body, [*headers, (b"content-length", b"%d" % len(body))]


async def send_answer(send: Send, body: bytes, headers: Headers, seconds: float) -> None:
    """Send an answer to a client that takes it within so many seconds; raises ClientGone for one that does not."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if len(body) <= PIECE:
        await send({"type": "http.response.body", "body": body})
        return
    try:
        async with asyncio.timeout(seconds):
            for at in range(0, len(body), PIECE):
                more = at + PIECE < len(body)
                await send({"type": "http.response.body", "body": body[at : at + PIECE], "more_body": more})
    except TimeoutError:
        raise ClientGone from None


def refusal(error: LCTError) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body that tell a client of an error."""
    kind, headers = kind_of(error), {"content-type": "application/json"}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if kind in UNREAD:
        headers["connection"] = "close"
    return STATUS[kind], headers, write_json({"error": str(error)})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
