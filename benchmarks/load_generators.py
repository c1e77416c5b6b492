"""The server's requests a second and latencies by load generators that others trust, beside those by our own client.

All send the same requests to the same server, at fixed depth on one compute thread: in JSON, in binary (JSON with bytes
behind it), and raw (bytes alone); 1, 8 and 32 connections send a request each as soon as the one before is answered.
Rounds alternate; figures are medians over the rounds. All share the machine with the server.

    apt-get install wrk hey apache2-utils
    anytime-lct quickstart
    python benchmarks/load_generators.py --bundle quickstart/bundle [--rounds 4] [--seconds 1]

own    one thread of Python, sockets alone (benchmarks/throughput.py)
wrk    C, one thread
hey    Go
ab     C, one thread, HTTP/1.0 with connections kept alive
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measuring import RESULTS, write
from serving import HOST
from throughput import CONNECTIONS, Client, ours, subject

PERCENTILES = (50, 90, 99)
LUA = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body, wrk.headers = "POST", file:read("*a"), {{{headers}}}
function done(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("\\nRESULT %d %d %d %g %g %g\\n", summary.requests, summary.duration, bad,
    latency:percentile(50), latency:percentile(90), latency:percentile(99)))
end
"""


class Load(NamedTuple):
    """What a generator says: requests a second, and milliseconds by percentile."""

    rate: float
    milliseconds: dict[int, float]


class Request(NamedTuple):
    """A request: the bytes as our own client sends them, and their parts for the others."""

    message: bytes
    url: str
    headers: dict[str, str]
    body: Path

    @classmethod
    def of(cls, message: bytes, port: int, folder: Path, name: str) -> Request:
        """Take a request apart; its body goes into a file."""
        head, _, body = message.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = dict(field.split(": ", 1) for field in fields)
        file = folder / f"{name}.body"
        file.write_bytes(body)
        own = {key: value for key, value in headers.items() if key not in ("Host", "Content-Length")}
        return cls(message, f"http://{HOST}:{port}{line.split()[1]}", own, file)


class TimedClient(Client):
    """Our own client, with the latency of every request."""

    def run(self, seconds: float) -> float:
        """Send for some seconds; return the answers per second."""
        self.latencies: list[float] = []
        sent = dict.fromkeys(self._missing, start := time.perf_counter())
        for connection in self._missing:
            connection.sendall(self._message)
        now = start
        while now < start + seconds:
            for key, _ in self._selector.select():
                if self._receive(key.fileobj):
                    now = time.perf_counter()
                    self.latencies.append(now - sent[key.fileobj])  # type: ignore[index]
                    sent[key.fileobj] = now  # type: ignore[index]
                    key.fileobj.sendall(self._message)  # type: ignore[union-attr]
        return len(self.latencies) / (now - start)


def own(request: Request, connections: int, seconds: int) -> Load:
    """Load by our own client."""
    client = TimedClient(int(request.url.split(":")[2].split("/")[0]), request.message, connections)
    rate = client.run(seconds)
    client.close()
    found = np.percentile(1000 * np.array(client.latencies), PERCENTILES)
    return Load(rate, dict(zip(PERCENTILES, found.tolist(), strict=True)))


def wrk(request: Request, connections: int, seconds: int) -> Load:
    """Load by wrk."""
    headers = ", ".join(f'["{name}"] = "{value}"' for name, value in request.headers.items())
    script = request.body.with_suffix(".lua")
    script.write_text(LUA.format(body=request.body, headers=headers), encoding="utf-8")
    text = _run("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, request.url)
    match = re.search(r"^RESULT (.*)$", text, re.MULTILINE)
    assert match is not None, text
    requests, duration, bad, *times = map(float, match[1].split())
    _expect_none(bad, text)
    return Load(1e6 * requests / duration, {p: each / 1000 for p, each in zip(PERCENTILES, times, strict=True)})


def hey(request: Request, connections: int, seconds: int) -> Load:
    """Load by hey."""
    options = [part for name, value in request.headers.items() for part in ("-H", f"{name}: {value}")]
    content = request.headers.get("Content-Type", "application/octet-stream")
    text = _run(
        "hey", "-z", f"{seconds}s", "-c", connections, "-m", "POST", "-T", content, "-D", request.body, *options,
        "-o", "csv", request.url,
    )  # fmt: skip
    rows = list(csv.DictReader(text.splitlines()))
    _expect_none(sum(row["status-code"] != "200" for row in rows), text)
    times = [1000 * float(row["response-time"]) for row in rows]
    ends = max(float(row["offset"]) + float(row["response-time"]) for row in rows)
    found = np.percentile(times, PERCENTILES)
    return Load(len(rows) / ends, dict(zip(PERCENTILES, found.tolist(), strict=True)))


def ab(request: Request, connections: int, seconds: int) -> Load:
    """Load by ab."""
    options = [part for name, value in request.headers.items() for part in ("-H", f"{name}: {value}")]
    content = request.headers.get("Content-Type", "application/octet-stream")
    table = request.body.with_suffix(".csv")
    text = _run(
        "ab", "-q", "-k", "-c", connections, "-t", seconds, "-n", 10_000_000, "-p", request.body, "-T", content,
        "-e", table, *options, request.url,
    )  # fmt: skip
    rate = re.search(r"Requests per second:\s+([\d.]+)", text)
    assert rate is not None, text
    _expect_none(int((re.findall(r"Non-2xx responses:\s+(\d+)", text) or ["0"])[0]), text)
    times = {int(row[0]): float(row[1]) for row in list(csv.reader(table.read_text().splitlines()))[1:]}
    return Load(float(rate[1]), {p: times[p] for p in PERCENTILES})


GENERATORS: dict[str, Callable[[Request, int, int], Load]] = {"own": own, "wrk": wrk, "hey": hey, "ab": ab}


def _run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout


def _expect_none(bad: float, text: str) -> None:
    if bad:
        raise RuntimeError(f"Expected status 200 for every request, got {bad:g} others:\n{text[:2000]}")


def versions() -> dict[str, str]:
    """Return the versions of the packages of the generators."""
    packages = {"wrk": "wrk", "hey": "hey", "ab": "apache2-utils"}
    return {name: _run("dpkg-query", "-W", "-f", "${Version}", package) for name, package in packages.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("quickstart/bundle"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=1, help="Seconds of a generator in a round.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    exit, x, result = subject(arguments.bundle, arguments.rounds, arguments.seconds)
    result["versions"] = versions()
    with tempfile.TemporaryDirectory() as folder, ours(arguments.bundle, exit, 1, x) as target:
        own(Request.of(target.messages["raw"], target.port, Path(folder), "warm"), 8, 1)
        for name, message in target.messages.items():
            request = Request.of(message, target.port, Path(folder), name)
            for connections in CONNECTIONS:
                loads: dict[str, list[Load]] = {generator: [] for generator in GENERATORS}
                for index in range(arguments.rounds):
                    for generator in list(GENERATORS)[:: 1 if index % 2 else -1]:
                        loads[generator].append(GENERATORS[generator](request, connections, arguments.seconds))
                for generator, each in loads.items():
                    times = {p: statistics.median(load.milliseconds[p] for load in each) for p in PERCENTILES}
                    rates = [load.rate for load in each]
                    result["rows"].append(
                        {
                            "generator": generator,
                            "format": name,
                            "connections": connections,
                            "requests_per_second": statistics.median(rates),
                            "range": [min(rates), max(rates)],
                            "milliseconds": times,
                        }
                    )
                    shown = ", ".join(f"p{p} {value:.2f} ms" for p, value in times.items())
                    rate = statistics.median(rates)
                    print(f"{name:6s} {connections:2d}  {generator:4s} {rate:6.0f} requests/s  {shown}", flush=True)
    write("load_generators", result, arguments.out)


if __name__ == "__main__":
    main()
