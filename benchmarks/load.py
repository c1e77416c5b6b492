"""Open-loop load on a server: requests leave at the times of a Poisson process, whether or not earlier ones are done.

Latency counts from the scheduled time, so a sender that falls behind does not flatter the server. Connections are kept
alive; a new one is opened when none is free.
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
class Exchange:
    """A request and its answer: the number of the input, times by time.perf_counter, and the response."""

    number: int
    scheduled: float
    departure: float = 0.0
    arrival: float = 0.0
    status: int = 0
    head: bytes = b""
    body: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def latency(self) -> float:
        """Seconds from the scheduled time to the whole answer."""
        return self.arrival - self.scheduled

    def read(self) -> np.ndarray | None:
        """Return the logits of a binary answer, (K,); `facts` then holds the response's parameters."""
        if self.status != 200:
            return None
        lines = self.head.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"inference-header-content-"))
        answer = json.loads(self.body[:length])
        self.facts = answer["parameters"]
        offset, logits = length, None
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            if output["name"] == "logits":
                logits = np.frombuffer(self.body[offset : offset + size], "<f4")
            offset += size
        return logits


def request(host: str, model: str, x: np.ndarray, parameters: dict[str, Any]) -> bytes:
    """Write a binary V2 request for binary logits of one input, (1, C, H, W) float32."""
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
    """A kept-alive connection, for one request at a time."""

    def __init__(self, free: list[_Connection]) -> None:
        self.free = free
        self.exchange: Exchange | None = None
        self.done: Callable[[], None] = lambda: None
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, exchange: Exchange, message: bytes, done: Callable[[], None]) -> None:
        assert self.transport is not None
        self.exchange, self.done, self.buffer = exchange, done, b""
        exchange.departure = time.perf_counter()
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or self.exchange is None:
            return
        lower = head.lower()
        start = lower.index(b"content-length:", lower.index(b"\r\n"))
        while lower[start - 2 : start] != b"\r\n":  # not inference-header-content-length
            start = lower.index(b"content-length:", start + 1)
        if len(body) >= int(lower[start + 15 :].partition(b"\r\n")[0]):
            exchange, self.exchange = self.exchange, None
            exchange.arrival, exchange.status = time.perf_counter(), int(head[9:12])
            exchange.head, exchange.body = head, body
            self.free.append(self)
            self.done()

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.free:
            self.free.remove(self)
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.arrival = time.perf_counter()
            self.done()


async def open_loop(
    host: str, port: int, rate: float, seconds: float, messages: Sequence[bytes], seed: int
) -> list[Exchange]:
    """Send `messages` in turn at `rate` per second for `seconds`; return all exchanges, answered or not."""
    loop = asyncio.get_running_loop()
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.2) + 100))
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

    async def send_on_new(exchange: Exchange, message: bytes) -> None:
        try:
            (await connect()).send(exchange, message, done)
        except OSError:
            exchange.arrival = time.perf_counter()
            done()

    for _ in range(32):
        free.append(await connect())
    exchanges: list[Exchange] = []
    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter() + 0.1
    for k, offset in enumerate(times):
        scheduled = start + float(offset)
        while (wait := scheduled - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        exchange = Exchange(k, scheduled)
        exchanges.append(exchange)
        message = messages[k % len(messages)]
        if free:
            free.pop().send(exchange, message, done)
        else:
            task = loop.create_task(send_on_new(exchange, message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if k % 16 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(finished.wait(), 60 + seconds)
    for connection in opened:
        if connection.transport is not None:
            connection.transport.close()
    return exchanges
