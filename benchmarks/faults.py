"""The server under faults: the share answered in time while something goes wrong, and what a shutdown loses.

hog      two processes keep the cores busy
gone     twenty clients a second send a request and hang up
slow     group 2 takes four times as long as the timings say (in a copy of the bundle with wrong timings)
sigterm  the server gets SIGTERM halfway: every admitted request must be answered

Each runs under Poisson load at half the full-depth capacity, as benchmarks/serving.py sends it.

    python benchmarks/faults.py --run runs/serving [--seconds 30] [--deadline 20ms]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from load import Exchange, open_loop, request
from measuring import RESULTS, write
from serving import HOST, capacity, images_of, judge, prepare, server, whole_exit

from anytime_lct.exits.budget import parse_seconds
from anytime_lct.runtime.timings import timings_path

HOGS, GONE_A_SECOND, SLOWER = 2, 20, 4.0


def _burn() -> None:
    while True:
        pass


@contextmanager
def hogs() -> Iterator[None]:
    """Keep the cores busy."""
    processes = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(HOGS)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def hanging_up(port: int, message: bytes) -> Iterator[None]:
    """Send requests and close each connection before the answer comes."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(1 / GONE_A_SECOND):
            with socket.create_connection((HOST, port)) as connection:
                connection.sendall(message)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def copy_with_wrong_timings(bundle: Path, folder: Path) -> Path:
    """Copy a bundle with timings that give group 2 a quarter of its seconds; return the copy."""
    copy = folder / bundle.name
    shutil.copytree(bundle, copy)
    timings = json.loads(timings_path(bundle).read_text())
    for times in timings["sizes"].values():
        times["groups"][1] = {name: seconds / SLOWER for name, seconds in times["groups"][1].items()}
    timings_path(copy).write_text(json.dumps(timings))
    return copy


def stop_midway(
    bundle: Path, options: tuple[str, ...], rate: float, seconds: float, messages: list[bytes]
) -> dict[str, Any]:
    """Send SIGTERM to the server halfway; count the outcomes of the requests sent before."""
    with server(bundle, *options) as (port, process):
        asyncio.run(open_loop(HOST, port, 20, 1, messages, seed=0))
        signalled_at: list[float] = []

        def terminate() -> None:
            signalled_at.append(time.perf_counter())
            process.send_signal(signal.SIGTERM)

        threading.Timer(seconds / 2, terminate).start()
        exchanges: list[Exchange] = asyncio.run(open_loop(HOST, port, rate, seconds, messages, seed=0))
        process.wait(30)
    before = [each for each in exchanges if each.departure and each.departure < signalled_at[0]]
    return {
        "left_before": len(before),
        "answered": sum(each.status == 200 for each in before),
        "refused": sum(each.status == 503 for each in before),
        "lost": sum(each.status == 0 for each in before),
        "answered_after": sum(each.status == 200 for each in exchanges) - sum(each.status == 200 for each in before),
        "ended_with": process.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/serving"))
    parser.add_argument("--bundle", type=Path, help="Where the export is kept; default: beside the run.")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--deadline", default="20ms")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bundle = arguments.bundle or arguments.run.with_name(f"{arguments.run.name}.bundle")
    session = prepare(arguments.run, bundle)
    x, classes = images_of(arguments.run)
    offline = np.stack([whole_exit(session, i, x) for i in session.served])
    messages = [request(HOST, bundle.name.removesuffix(".bundle"), image[None], {}) for image in x]
    rate = capacity(bundle, session.choose(), messages) / 2
    deadline, options = parse_seconds(arguments.deadline), ("--deadline", arguments.deadline)
    result: dict[str, Any] = {"deadline_seconds": deadline, "seconds": arguments.seconds, "rate": rate}

    def measure(name: str, bundle: Path, fault: Callable[[int], AbstractContextManager[None]]) -> None:
        with server(bundle, *options) as (port, _):
            asyncio.run(open_loop(HOST, port, 20, 1, messages, seed=0))
            with fault(port):
                exchanges = asyncio.run(open_loop(HOST, port, rate, arguments.seconds, messages, seed=0))
        result[name] = judge(exchanges, offline, classes, deadline)
        row = result[name]
        print(
            f"{name:8s} on time {100 * row['on_time_share']:.2f}%  shed {100 * row['refused_share']:.2f}%",
            flush=True,
        )

    measure("nothing", bundle, lambda port: nullcontext())
    measure("hog", bundle, lambda port: hogs())
    measure("gone", bundle, lambda port: hanging_up(port, messages[0]))
    with tempfile.TemporaryDirectory() as folder:
        measure("slow", copy_with_wrong_timings(bundle, Path(folder)), lambda port: nullcontext())
    result["sigterm"] = stop_midway(bundle, options, rate, arguments.seconds / 3, messages)
    print(f"sigterm  {result['sigterm']}", flush=True)
    print(f"wrote {write('faults', result, arguments.out)}")


if __name__ == "__main__":
    main()
