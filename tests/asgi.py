"""Calls an ASGI app as a server would, message by message, so that tests can be slow or gone clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    app: Any,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: dict[str, str] | None = None,
    *,
    gone: asyncio.Event | None = None,
    then: float = 0.0,
) -> Response:
    """Send a request in pieces, `then` seconds apart; `gone` is when the client hangs up, without it never."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("test", 80),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def messages() -> AsyncIterator[dict[str, Any]]:
        for k, piece in enumerate(pieces):
            yield {"type": "http.request", "body": piece, "more_body": k < len(pieces) - 1}
            await asyncio.sleep(then)
        await (gone or asyncio.Event()).wait()
        yield {"type": "http.disconnect"}

    stream = messages()

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app(scope, lambda: anext(stream), send)
    finally:
        await asyncio.sleep(0)
    if not sent:
        return Response(0, {}, b"")
    response_headers = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Response(sent[0]["status"], response_headers, b"".join(message.get("body", b"") for message in sent[1:]))


def ask(
    app: Any, method: str, path: str, body: Any = b"", headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """The same, from outside of an event loop; a body that is neither bytes nor pieces is sent as JSON."""
    if not isinstance(body, bytes | list):
        body = json.dumps(body).encode()
    return asyncio.run(request(app, method, path, body, headers, **more))


def binary(x: np.ndarray, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A batch of float32 as a binary request that asks for binary outputs: its body and headers."""
    raw = x.astype("<f4").tobytes()
    entry = {"name": "input", "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": len(raw)}}
    parameters = {"binary_data_output": True} | more
    head = json.dumps({"inputs": [entry], "parameters": parameters}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


def logits(response: Response, classes: int = 3) -> np.ndarray:
    """The first output of a binary answer."""
    head = int(response.headers["inference-header-content-length"])
    output = json.loads(response.body[:head])["outputs"][0]
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(response.body[head : head + size], "<f4").reshape(output["shape"])
