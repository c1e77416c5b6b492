"""The server at fixed depth against a bare app of FastAPI and onnxruntime: requests answered per second.

Both answer the same requests by the same sub-model on one compute thread, one sample a request: in JSON, in binary
(JSON with bytes behind it), and raw (bytes alone). 1, 8 and 32 connections send a request each as soon as the one
before is answered; rounds alternate, and the ratios are medians over the rounds. The client shares the machine.

    pip install fastapi uvicorn httptools
    anytime-lct quickstart
    python benchmarks/throughput.py --bundle quickstart/bundle [--rounds 15] [--seconds 1] [--cores 1 2]

The bare app checks nothing and serves one depth: what it answers faster is the price of checks, limits, metrics and
deadlines. With several --cores the server runs once for each number of compute threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, write
from serving import HOST, PROGRAM, receive
from throughput_app import GRAPH

from anytime_lct.exits.bundle import Bundle

CONNECTIONS = (1, 8, 32)
HEADER_LENGTH = "Inference-Header-Content-Length"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """A running server, and the request in each format."""

    name: str
    port: int
    pid: int
    messages: dict[str, bytes]

    @property
    def cpu_seconds(self) -> float:
        """Seconds of processor time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Write a request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def messages_of(x: np.ndarray, paths: tuple[str, str, str]) -> dict[str, bytes]:
    """Return the request for a batch in each format."""
    tensor: dict[str, Any] = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
    body = json.dumps({"inputs": [tensor | {"data": x.ravel().tolist()}]}).encode()
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = json.dumps(
        {"inputs": [tensor | {"parameters": {"binary_data_size": x.nbytes}}], "outputs": outputs}
    ).encode()
    return {
        "JSON": post(paths[0], body, "Content-Type: application/json"),
        "binary": post(paths[1], head + x.tobytes(), f"{HEADER_LENGTH}: {len(head)}"),
        "raw": post(paths[2], x.tobytes(), f"{HEADER_LENGTH}: 0"),
    }


@contextlib.contextmanager
def running(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server, and end it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def ours(bundle: Path, exit: int, cores: int, x: np.ndarray) -> Iterator[Target]:
    """Run the server at fixed depth."""
    options = ("--port", "0", "--cores", str(cores), "--fixed", str(exit), "--json")
    with running([*PROGRAM, "serve", str(bundle), *options]) as process:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["address"].rpartition(":")[2])
        path = f"/v2/models/{bundle.name.removesuffix('.bundle')}/infer"
        yield Target(f"--cores {cores}", port, process.pid, messages_of(x, (path, path, path)))


@contextlib.contextmanager
def bare(graph: Path, x: np.ndarray) -> Iterator[Target]:
    """Run the bare app."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    options = ("--factory", "--host", HOST, "--port", str(port), "--no-access-log", "--log-level", "warning")
    command = [sys.executable, "-m", "uvicorn", "throughput_app:create_app", *options]
    folder = str(Path(__file__).parent)
    with running([*command, "--app-dir", folder], **{GRAPH: str(graph)}) as process:
        target = Target("bare", port, process.pid, messages_of(x, ("/", "/binary", "/raw")))
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
                break
            time.sleep(0.1)
        yield target


class Client:
    """Connections that each send a request as soon as the one before is answered."""

    def __init__(self, port: int, message: bytes, number: int) -> None:
        self._message, self._selector = message, selectors.DefaultSelector()
        self._missing: dict[socket.socket, int] = {}
        for _ in range(number):
            connection = socket.create_connection((HOST, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ)
            self._missing[connection] = 0

    def run(self, seconds: float) -> float:
        """Send for some seconds; return the answers per second."""
        for connection in self._missing:
            connection.sendall(self._message)
        answers, start = 0, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds:
            for key, _ in self._selector.select():
                if self._receive(key.fileobj):
                    answers += 1
                    key.fileobj.sendall(self._message)  # type: ignore[union-attr]
        waiting = len(self._missing)
        while waiting:
            for key, _ in self._selector.select():
                waiting -= self._receive(key.fileobj)
        return answers / (now - start)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._missing:
            connection.close()
        self._selector.close()

    def _receive(self, connection: Any) -> bool:
        """Receive what there is of an answer; return whether it is whole."""
        data = connection.recv(1 << 16)
        if not self._missing[connection]:
            head, _, body = data.partition(b"\r\n\r\n")
            if head[9:12] != b"200":
                raise RuntimeError(f"Expected status 200, got {head[:200]!r} {body[:200]!r}.")
            length = head.lower().rpartition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            self._missing[connection] = int(length) - len(body)
        else:
            self._missing[connection] -= len(data)
        return not self._missing[connection]


def logits_of(target: Target) -> dict[str, np.ndarray]:
    """Return the logits that a server answers with in each format."""
    logits = {}
    for name, message in target.messages.items():
        with socket.create_connection((HOST, target.port)) as connection:
            connection.sendall(message)
            exchange = receive(connection)
        if name == "JSON":
            outputs = {each["name"]: each for each in json.loads(exchange.body)["outputs"]}
            logits[name] = np.array(outputs["logits"]["data"], np.float32)
        else:
            is_bare = b"inference-header" not in exchange.head.lower()
            logits[name] = np.frombuffer(exchange.body, "<f4") if is_bare else exchange.read()
    return logits


def compare(targets: list[Target], connections: int, name: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Return the throughput of every server, its ratio to the first, and its processor time per request."""
    clients = [Client(target.port, target.messages[name], connections) for target in targets]
    rates: list[list[float]] = [[] for _ in targets]
    costs: list[list[float]] = [[] for _ in targets]
    for index in range(-1, rounds):  # the first round warms up
        order = list(range(len(targets)))
        for k in order if index % 2 else order[::-1]:
            before = targets[k].cpu_seconds
            rate = clients[k].run(seconds)
            if index >= 0:
                rates[k].append(rate)
                costs[k].append((targets[k].cpu_seconds - before) / (rate * seconds))
    for client in clients:
        client.close()
    rows = []
    for k, target in enumerate(targets):
        ratios = [own / first for own, first in zip(rates[k], rates[0], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "server": target.name,
                "format": name,
                "connections": connections,
                "requests_per_second": statistics.median(rates[k]),
                "ratio": statistics.median(ratios),
                "quartiles": [quartiles[0], quartiles[2]],
                "cpu_us_per_request": 1e6 * statistics.median(costs[k]),
            }
        )
    return rows


def subject(path: Path, rounds: int, seconds: float) -> tuple[int, np.ndarray, dict[str, Any]]:
    """Return the deepest exit of a bundle, an input for it, and the head of a result about them."""
    bundle = Bundle.open(path)
    exit = bundle.manifest.served[-1]
    shape = [size if isinstance(size, int) else 1 for size in bundle.manifest.input_shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    head = {"network": bundle.manifest.model, "input_shape": shape, "exit": exit, "rounds": rounds, "seconds": seconds}
    return exit, x, {**head, "rows": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("quickstart/bundle"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="Seconds of a server in a round.")
    parser.add_argument("--cores", type=int, nargs="+", default=[1], help="Compute threads of the server.")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    exit, x, result = subject(arguments.bundle, arguments.rounds, arguments.seconds)
    bundle = Bundle.open(arguments.bundle)
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(bare(bundle.exit(exit).resolve(), x))]
        targets += [stack.enter_context(ours(arguments.bundle, exit, cores, x)) for cores in arguments.cores]
        expected = logits_of(targets[0])
        for target in targets:
            for name, logits in logits_of(target).items():
                np.testing.assert_allclose(logits, expected[name], rtol=1e-4, atol=1e-5)
        for name in targets[0].messages:
            for connections in arguments.connections:
                rows = compare(targets, connections, name, arguments.rounds, arguments.seconds)
                result["rows"] += rows
                write("throughput", result, arguments.out)
                for row in rows:
                    low, high = row["quartiles"]
                    print(
                        f"{name:6s} {connections:2d} connections  {row['server']:9s} "
                        f"{row['requests_per_second']:7.0f} requests/s  ratio {row['ratio']:.2f} "
                        f"[{low:.2f}, {high:.2f}]  {row['cpu_us_per_request']:4.0f} us of processor time a request",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
