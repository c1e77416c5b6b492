"""Open-loop load on a server: requests leave when a Poisson process says so, whether or not earlier ones are answered.

Latency counts from the scheduled time, so that a sender that falls behind does not flatter the server. Connections are
kept alive and as many are opened as are needed at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Sent:
    """A request: which input, when it was due to leave and did leave, when the answer was there, and the answer."""

    number: int
    scheduled: float
    left: float = 0.0
    arrived: float = 0.0
    status: int = 0
    head: bytes = b""
    body: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def latency(self) -> float:
        """Seconds from the scheduled time to the whole answer."""
        return self.arrived - self.scheduled

    def read(self) -> np.ndarray | None:
        """Return the logits of a binary answer, (K,); `facts` then holds the response's parameters."""
        if self.status != 200:
            return None
        lines = self.head.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"inference-header-content-"))
        answer = json.loads(self.body[:length])
        self.facts = answer["parameters"]
        place, logits = length, None
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            if output["name"] == "logits":
                logits = np.frombuffer(self.body[place : place + size], "<f4")
            place += size
        return logits


def request(host: str, model: str, x: np.ndarray, parameters: dict[str, Any]) -> bytes:
    """Write a binary V2 request for one input (1, C, H, W) float32, which asks for binary logits."""
    data = np.ascontiguousarray(x, "<f4").tobytes()
    tensor = {
        "name": "input",
        "shape": list(x.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": parameters}).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {host}\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + len(data)}\r\n\r\n"
    )
    return head.encode() + header + data


class _Connection(asyncio.Protocol):
    """One kept-alive connection: one request at a time."""

    def __init__(self, free: list[_Connection]) -> None:
        self.free = free
        self.sent: Sent | None = None
        self.done: Callable[[], None] = lambda: None
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, sent: Sent, message: bytes, done: Callable[[], None]) -> None:
        assert self.transport is not None
        self.sent, self.done, self.buffer = sent, done, b""
        sent.left = time.perf_counter()
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or self.sent is None:
            return
        lower = head.lower()
        place = lower.index(b"content-length:", lower.index(b"\r\n"))
        while lower[place - 2 : place] != b"\r\n":  # not inference-header-content-length
            place = lower.index(b"content-length:", place + 1)
        if len(body) >= int(lower[place + 15 :].partition(b"\r\n")[0]):
            sent, self.sent = self.sent, None
            sent.arrived, sent.status, sent.head, sent.body = time.perf_counter(), int(head[9:12]), head, body
            self.free.append(self)
            self.done()

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.free:
            self.free.remove(self)
        if self.sent is not None:
            self.sent, sent = None, self.sent
            sent.arrived = time.perf_counter()
            self.done()


async def open_loop(
    host: str, port: int, rate: float, seconds: float, messages: Sequence[bytes], seed: int
) -> list[Sent]:
    """Send `messages` in turn at `rate` a second for `seconds`, and return all requests, answered or not."""
    loop = asyncio.get_running_loop()
    luck = np.random.default_rng(seed)
    times = np.cumsum(luck.exponential(1 / rate, int(rate * seconds * 1.2) + 100))
    times = times[times < seconds]
    free: list[_Connection] = []
    opened: list[_Connection] = []
    waiting = len(times)
    finished = asyncio.Event()

    def done() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            finished.set()

    async def connect() -> _Connection:
        _, connection = await loop.create_connection(lambda: _Connection(free), host, port)
        opened.append(connection)
        return connection

    async def late(sent: Sent, message: bytes) -> None:
        try:
            (await connect()).send(sent, message, done)
        except OSError:
            sent.arrived = time.perf_counter()
            done()

    for _ in range(32):
        free.append(await connect())
    requests: list[Sent] = []
    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter() + 0.1
    for k, at in enumerate(times):
        scheduled = start + float(at)
        while (wait := scheduled - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        sent = Sent(k, scheduled)
        requests.append(sent)
        message = messages[k % len(messages)]
        if free:
            free.pop().send(sent, message, done)
        else:
            task = loop.create_task(late(sent, message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if k % 16 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(finished.wait(), 60 + seconds)
    for connection in opened:
        if connection.transport is not None:
            connection.transport.close()
    return requests
