"""Requests that join: throughput at full depth, and the share answered in time, with and without `serve --batch 32`.

1. 1, 8 and 32 clients in closed loop, each with one image at full depth: requests a second, on every provider that is
   there, with and without joining in alternation.
2. Poisson load at shares of the capacity without joining, with a deadline: the share of the admitted requests that is
   answered in time, the share that is shed, and the mean exit. On the CPU.

The engine runs in this process, with one compute thread and without HTTP; the clients share the machine. The network
has 56 layers of 4 channels on 8x8 pixels, so that a call costs more than its arithmetic. Weights are random.

    python benchmarks/batching.py [--seconds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, write
from runtime import bundle_of

from anytime_lct.exits.budget import Ask, Budget
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime.providers import PROVIDERS
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.engine.engine import Engine
from anytime_lct.serving.engine.job import ServedBundle
from anytime_lct.serving.engine.joining import sizes_to
from anytime_lct.serving.request import Overloaded, Reply

CLIENTS = (1, 8, 32)
LOADS = (0.5, 0.9, 1.3, 2.5)
BATCH = 32
ROUNDS = 3


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 3, 8, 8), dtype=np.float32)


def throughput(served: ServedBundle, clients: int, seconds: float) -> float:
    """Return the requests a second at full depth of clients that each wait for their answer."""
    engine, ask, counts = Engine(1), Ask(Budget(exit=4), mode="fixed"), [0] * clients
    end = time.monotonic() + seconds

    def run(k: int, x: np.ndarray) -> None:
        while time.monotonic() < end:
            engine.submit(served, x, ask, time.monotonic()).result()
            counts[k] += 1

    threads = [threading.Thread(target=run, args=(k, x)) for k, x in enumerate(images(clients))]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    duration = time.monotonic() - start
    engine.close()
    return sum(counts) / duration


def load(served: ServedBundle, rate: float, deadline: float, seconds: float) -> dict[str, float]:
    """Send requests at random times, whether or not earlier ones are answered; return shares and the mean exit."""
    engine, inputs, luck = Engine(1), images(64), np.random.default_rng(1)
    futures, shed, ask = [], 0, Ask(timeout=deadline)
    times = np.cumsum(luck.exponential(1 / rate, int(rate * seconds)))
    start = time.monotonic()
    for k, at in enumerate(times):
        time.sleep(max(0.0, start + at - time.monotonic()))
        try:
            futures.append(engine.submit(served, inputs[k % 64], ask, time.monotonic()))
        except Overloaded:
            shed += 1
    replies: list[Reply] = [future.result() for future in futures]
    engine.close()
    return {
        "sent": len(times),
        "on_time_share": sum(bool(reply.on_time) for reply in replies) / max(1, len(replies)),
        "shed_share": shed / len(times),
        "mean_exit": statistics.fmean(reply.answer.exit for reply in replies),
    }


def serve(bundle: Bundle, provider: str, most: int) -> ServedBundle:
    session = AnytimeSession(bundle, provider=provider)
    session.warm()
    return ServedBundle(session, sizes=sizes_to(most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of every load; a third of it for every throughput")
    parser.add_argument("--deadline", type=float, default=0.02)
    parser.add_argument("--bundles", type=Path, help="where to keep the exported network; default: nowhere")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    loads: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = (arguments.bundles or Path(folder)) / "small"
        if not place.exists():
            bundle_of("resnet", 8, place, depth=56, width=4)
        bundle = Bundle.open(place / "bundle")
        for provider in [name for name, each in PROVIDERS.items() if each.is_there]:
            both = {"joining": serve(bundle, provider, BATCH), "alone": serve(bundle, provider, 1)}
            seconds = {size: both["joining"].timing.calibrated(4, size) for size in sizes_to(BATCH)}
            for clients in CLIENTS:
                times: dict[str, list[float]] = {name: [] for name in both}
                for _ in range(ROUNDS):
                    for name, served in both.items():
                        times[name].append(throughput(served, clients, arguments.seconds / 3))
                medians = {name: statistics.median(row) for name, row in times.items()}
                ratio = medians["joining"] / medians["alone"]
                rows.append(
                    {"provider": provider, "clients": clients, "ratio": ratio, **medians}
                    | {"batches": both["joining"].batches, "batch_seconds": seconds}
                )
                print(
                    f"{provider}, {clients} clients: {medians['alone']:.0f} a second alone, {ratio:.2f} times joining"
                )
            if provider == "cpu":
                capacity = medians["alone"]
                for share in LOADS:
                    for name, served in both.items():
                        row = load(served, share * capacity, arguments.deadline, arguments.seconds)
                        loads.append({"load": share, "way": name, **row})
                        print(f"load {share}, {name}: {row}", flush=True)
    result = {"deadline": arguments.deadline, "batch": BATCH, "throughput": rows, "loads": loads}
    print(f"wrote {write('batching', result, arguments.out)}")


if __name__ == "__main__":
    main()
