"""The way of one request: its bytes, its input, the engine, its answer. The hot path: plain ASGI, nothing between."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.exits.bundle import Manifest
from anytime_lct.serving.http.body import ClientGone, Message, Receive, pack, read_body
from anytime_lct.serving.limits import Allowance, Limits
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.repository import Repository
from anytime_lct.serving.request import Ask, Overloaded, Refusal, Reply
from anytime_lct.serving.v2.protocol import HEADER_LENGTH, InferRequest, read_request, write_json, write_reply

Scope = Any
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")
# What takes a millisecond and more to read or write must not keep the event loop from the others: so many bytes, or
# so many numbers of JSON.
LARGE, MANY = 1 << 18, 1 << 10
PIECE = 1 << 18
NUMBER_IN_JSON = 24  # bytes that a number of an answer may take while it is written


class Answering(Protocol):
    """What the server needs of an engine."""

    def submit(self, served: Any, x: NDArray[Any], ask: Ask, arrived: float) -> Future[Reply]:
        """Admit a checked batch that came at `arrived`, of time.monotonic(); raises Overloaded."""
        ...

    def sent(self, reply: Reply) -> None:
        """Be told that a reply has just been written for its client."""
        ...

    def queue_length(self) -> int:
        """Count what is admitted and not begun."""
        ...

    def drain(self, seconds: float) -> bool:
        """Admit no more and wait for what is admitted."""
        ...

    def close(self) -> None:
        """End the threads."""
        ...


@dataclass(eq=False)
class Service:
    """All that requests share. `default` is what a request asks for where it says nothing."""

    repository: Repository[Any]
    engine: Answering
    metrics: Metrics
    limits: Limits
    default: Ask
    allowance: Allowance
    draining: bool = False


class Infer:
    """The endpoint `/v2/models/{model}/infer`, an ASGI app; raises LCTError for what cannot be answered."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        service, path = self._service, scope["path_params"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        model = service.repository.find(path["model"], path.get("version"))
        counted = service.metrics.of(model.name, model.version, model.served.manifest.served)
        service.metrics.in_flight.inc()
        try:
            with service.allowance.hold() as holding:
                body = await read_body(headers, receive, service.limits, holding)
                request = await self._read(body, headers.get(HEADER_LENGTH), model.served)
                holding.take(max(0, request.input_bytes - len(body)))
                x = await apart(request.input_bytes > LARGE, request.read_input)
                text = not all(request.outputs.values())
                holding.take(_numbers(x, model.served.manifest) * (NUMBER_IN_JSON if text else 4))
                reply = await self._answer(model.served, x, request.ask, arrived, receive)
                slow = reply.logits.size > MANY if text else reply.logits.nbytes > LARGE
                answer, length = await apart(
                    slow, write_reply, request, model.name, model.version, reply, time.monotonic() - arrived
                )
                answer, told = await dress(answer, length, headers.get(b"accept-encoding"))
                service.engine.sent(reply)
                seconds = time.monotonic() - arrived
                await send_answer(send, answer, told, service.limits.read_seconds)
                counted.answered(reply, seconds, request.ask.timeout)  # once it has gone: counting takes time too
        except ClientGone:
            counted.outcomes["gone"].inc()
        except Overloaded:
            counted.outcomes["shed"].inc()
            raise
        except LCTError as error:
            counted.outcomes["failed" if isinstance(error, BundleError) else "refused"].inc()
            raise
        except Exception:
            counted.outcomes["failed"].inc()
            raise
        finally:
            service.metrics.in_flight.dec()
            service.metrics.queue.set(service.engine.queue_length())

    async def _read(self, body: bytes, length: bytes | None, served: Any) -> InferRequest:
        service = self._service
        return await apart(
            len(body) > LARGE, read_request, body, length, served.manifest, service.limits, service.default
        )

    async def _answer(self, served: Any, x: NDArray[Any], ask: Ask, arrived: float, receive: Receive) -> Reply:
        service = self._service
        future = service.engine.submit(served, x, ask, arrived)
        service.metrics.queue.set(service.engine.queue_length())
        watch = asyncio.create_task(_cancel_when_gone(receive, future))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if watch.done() and future.cancelled():
                raise ClientGone from None
            raise
        finally:
            watch.cancel()


def _numbers(x: NDArray[Any], manifest: Manifest) -> int:
    """Count the logits of an answer: a class each of every sample, or of every step of it."""
    return math.prod(x.shape[: 1 if manifest.task == "classification" else 2]) * manifest.outputs


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
    """Send an answer to a client that takes it within so many seconds."""
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
    status, headers = 400, {"content-type": "application/json"}
    if isinstance(error, Refusal):
        status = error.status
    elif isinstance(error, BundleError):  # a file of the server's own, whatever was asked
        status = 500
    elif isinstance(error, Overloaded):
        status = 503
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if status in (408, 413):  # what is left of the body is not read
        headers["connection"] = "close"
    return status, headers, write_json({"error": str(error)})


async def _cancel_when_gone(receive: Receive, future: Future[Reply]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    future.cancel()
