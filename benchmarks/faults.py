"""The server in trouble: who is answered in time while something goes wrong beside it, and what is lost at its end.

hog      two processes that do nothing but use the cores
gone     twenty clients a second that send a request and hang up
slow     group 2 takes four times as long as the timings say (the timings of a copy of the bundle are made to lie)
sigterm  the server is told to end in the midst: every request that it had admitted must be answered

Each beside Poisson load at half the full-depth capacity, as benchmarks/serving.py sends it.

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
from load import Sent, open_loop, request
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
    running = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(HOGS)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.join()


@contextmanager
def hanging_up(port: int, message: bytes) -> Iterator[None]:
    """Send requests and go before the answer comes."""
    over = threading.Event()

    def send() -> None:
        while not over.wait(1 / GONE_A_SECOND):
            with socket.create_connection((HOST, port)) as connection:
                connection.sendall(message)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lying_copy(bundle: Path, folder: Path) -> Path:
    """Copy a bundle with timings by which group 2 takes a fourth of what it takes."""
    copy = folder / bundle.name
    shutil.copytree(bundle, copy)
    timings = json.loads(timings_path(bundle).read_text())
    for times in timings["sizes"].values():
        times["groups"][1] = {name: seconds / SLOWER for name, seconds in times["groups"][1].items()}
    timings_path(copy).write_text(json.dumps(timings))
    return copy


def ended_early(bundle: Path, options: tuple[str, ...], rate: float, seconds: float, messages: list[bytes]) -> Any:
    """Tell the server to end half-way; count what became of the requests that had left before."""
    with server(bundle, *options) as (port, process):
        asyncio.run(open_loop(HOST, port, 20, 1, messages, seed=0))
        signalled_at: list[float] = []

        def tell() -> None:
            signalled_at.append(time.perf_counter())
            process.send_signal(signal.SIGTERM)

        threading.Timer(seconds / 2, tell).start()
        sent: list[Sent] = asyncio.run(open_loop(HOST, port, rate, seconds, messages, seed=0))
        process.wait(30)
    before = [each for each in sent if each.left and each.left < signalled_at[0]]
    return {
        "left_before": len(before),
        "answered": sum(each.status == 200 for each in before),
        "refused": sum(each.status == 503 for each in before),
        "lost": sum(each.status == 0 for each in before),
        "answered_after": sum(each.status == 200 for each in sent) - sum(each.status == 200 for each in before),
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

    def beside(name: str, where: Path, trouble: Callable[[int], AbstractContextManager[None]]) -> None:
        with server(where, *options) as (port, _):
            asyncio.run(open_loop(HOST, port, 20, 1, messages, seed=0))
            with trouble(port):
                sent = asyncio.run(open_loop(HOST, port, rate, arguments.seconds, messages, seed=0))
        result[name] = judge(sent, offline, classes, deadline)
        row = result[name]
        print(
            f"{name:8s} on time {100 * row['on_time_share']:.2f}%  refused {100 * row['refused_share']:.2f}%",
            flush=True,
        )

    beside("nothing", bundle, lambda port: nullcontext())
    beside("hog", bundle, lambda port: hogs())
    beside("gone", bundle, lambda port: hanging_up(port, messages[0]))
    with tempfile.TemporaryDirectory() as folder:
        beside("slow", lying_copy(bundle, Path(folder)), lambda port: nullcontext())
    result["sigterm"] = ended_early(bundle, options, rate, arguments.seconds / 3, messages)
    print(f"sigterm  {result['sigterm']}", flush=True)
    print(f"wrote {write('faults', result, arguments.out)}")


if __name__ == "__main__":
    main()
