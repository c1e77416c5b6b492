"""One request over HTTP: bytes, input, the service's reply, bytes. The hot path, in plain ASGI."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray

from anytime_lct.errors import LCTError
from anytime_lct.serving.http.body import Message, Receive, Scope, compress, read_body
from anytime_lct.serving.limits import Holding
from anytime_lct.serving.request import ClientGone, Kind, Overloaded, kind_of
from anytime_lct.serving.service import Service, num_logits
from anytime_lct.serving.v2.json_text import write_json
from anytime_lct.serving.v2.protocol import HEADER_LENGTH, InferRequest, json_length, read_request, write_reply

Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")
STATUS: dict[Kind, int] = {
    "invalid": 400, "unidentified": 401, "forbidden": 403, "unknown": 404, "slow": 408, "large": 413, "encoding": 415,
    "overloaded": 503, "failed": 500,
}  # fmt: skip
# Messages of these kinds may quote paths: the log has them whole, clients get the last name of each.
OF_FOLDERS: tuple[Kind, ...] = ("unknown", "failed")
FOLDERS = re.compile(r"'[^']*/(?=[^'/]*')")
log = logging.getLogger(__name__)
UNREAD: tuple[Kind, ...] = ("slow", "large")  # after these the rest of the body is not read
# Sizes from which reading or writing takes a millisecond or more, and must not block the event loop: bytes, bytes
# of JSON, and numbers in it.
LARGE, LARGE_JSON, MANY = 1 << 18, 1 << 15, 1 << 10
PIECE = 1 << 18


class Infer:
    """The endpoint `/v2/models/{model}/infer`, an ASGI app; raises LCTError for what cannot be answered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Images are decoded one at a time, in a thread of their own: they take many times the memory of their files,
        # and what is free of it is used again by the thread that freed it.
        self._decoding = asyncio.Lock()
        self._decoder = ThreadPoolExecutor(1, "decoder")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        service, limits, path = self._service, self._service.limits, scope["path_params"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        model = service.find(path["model"], path.get("version"))
        manifest = model.bundle.manifest
        with service.exchange(model) as exchange:
            body = await read_body(scope, receive, limits, exchange.holding)
            header = headers.get(HEADER_LENGTH)
            is_slow = len(body) > LARGE or json_length(header, len(body)) > LARGE_JSON
            request = await in_thread_if(is_slow, read_request, body, header, manifest, limits, service.default)
            exchange.holding.take(max(0, request.input_bytes - len(body)))
            x = await self._read_input(request, exchange.holding, arrived, is_slow)
            if request.decoding_size is not None:  # the files are not needed any more
                request = request._replace(read_input=lambda: x, decoding_size=None)
            exchange.holding.take(request.outputs.size(len(x), num_logits(x, manifest)))
            exchange.take_buffers(x)
            reply = await service.answer(model, x, request.ask, arrived, partial(_until_gone, receive))
            logits = reply.answer.logits
            is_slow = logits.size > MANY if request.outputs.has_text else logits.nbytes > LARGE
            seconds = time.monotonic() - arrived
            content, length = await in_thread_if(
                is_slow, write_reply, request, model.name, model.version, reply, seconds
            )
            content, response_headers = await encode(content, length, headers.get(b"accept-encoding"))
            service.engine.record_sent(reply)
            seconds = time.monotonic() - arrived
            await send_answer(send, content, response_headers, limits.read_seconds)
            exchange.count_reply(reply, seconds, request.ask.timeout)  # after sending: counting takes time too

    async def _read_input(self, request: InferRequest, holding: Holding, arrived: float, is_slow: bool) -> NDArray[Any]:
        """Read a request's input; raises Refusal, InputError and Overloaded."""
        if request.decoding_size is None:
            holding.take(request.resizing_bytes)
            x = await in_thread_if(is_slow or request.input_bytes + request.resizing_bytes > LARGE, request.read_input)
            holding.give_back(request.resizing_bytes)
            return x
        async with self._decoding:
            timeout = request.ask.timeout
            if timeout is not None and time.monotonic() > arrived + timeout:
                raise Overloaded(
                    "Expected time to decode images before the deadline, got none; allow more time, or try again later."
                )
            in_decoder = partial(asyncio.get_running_loop().run_in_executor, self._decoder)
            with holding.borrow(await in_decoder(request.decoding_size)):
                return await in_decoder(request.read_input)


async def in_thread_if(is_slow: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function, in a thread where it would block the event loop for long."""
    return await asyncio.to_thread(function, *arguments) if is_slow else function(*arguments)


async def encode(body: bytes, json_length: int | None, accepted: bytes | None) -> tuple[bytes, Headers]:
    """Return the body of a response, compressed if the client accepts it and it saves bytes, and its headers."""
    headers = [(b"content-type", b"application/json" if json_length is None else b"application/octet-stream")]
    if json_length is not None:
        headers.append((HEADER_LENGTH, b"%d" % json_length))
    if accepted is not None:
        body, encoding = await in_thread_if(len(body) > LARGE, compress, body, accepted)
        if encoding is not None:
            headers += [(b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    return body, [*headers, (b"content-length", b"%d" % len(body))]


async def send_answer(send: Send, body: bytes, headers: Headers, seconds: float) -> None:
    """Send an answer; raises ClientGone for a client that does not read a large one within `seconds`.

    The connection bounds the time in which any answer is read a bit further.
    """
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if len(body) <= PIECE:
        await send({"type": "http.response.body", "body": body})
        return
    try:
        async with asyncio.timeout(seconds):
            for offset in range(0, len(body), PIECE):
                end = offset + PIECE
                await send({"type": "http.response.body", "body": body[offset:end], "more_body": end < len(body)})
    except TimeoutError:
        raise ClientGone from None


def refusal(error: LCTError) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body of the response to an error."""
    kind, headers, message = kind_of(error), {"content-type": "application/json"}, str(error)
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if kind == "unidentified":
        headers["www-authenticate"] = "Bearer"
    if kind in UNREAD:
        headers["connection"] = "close"
    if kind == "failed":
        log.error("%s", message)
    if kind in OF_FOLDERS:
        message = FOLDERS.sub("'", message)
    return STATUS[kind], headers, write_json({"error": message})


async def send_refusal(send: Send, error: LCTError) -> None:
    """Send the response to an error."""
    status, headers, body = refusal(error)
    headers["content-length"] = str(len(body))
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
