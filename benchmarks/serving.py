"""The server under load: the share answered in time, exits and accuracy of the answers, and the cost of HTTP.

1. Poisson load at shares of the full-depth capacity, on a server that goes as deep as time allows and on the same one
   at fixed full depth, which is the best exit on validation data. Fashion-MNIST's test images, one per request, binary
   tensors; latency counts from the scheduled time. Every answer is compared bit by bit with the offline sub-model of
   the exit that it names.
2. With --batch N, the same loads on a server of which requests join, `serve --batch N`; and on both servers, loads that
   are shares of the capacity with joining. Joined answers may differ from the sub-model's by rounding.
3. One binary request at a time over HTTP, against the same input in process, in alternation.

    anytime-lct train --recipe benchmarks/serving.toml --run-dir runs/serving
    python benchmarks/serving.py --run runs/serving [--seconds 60] [--seeds 3] [--deadline 20ms] [--batch 32]

One compute thread; the sender shares the machine. Results are written as they come; --resume continues.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from load import Exchange, open_loop, request
from matplotlib.figure import Figure
from measuring import RESULTS, write

from anytime_lct.analysis import picture
from anytime_lct.data import datasets
from anytime_lct.exits.budget import parse_seconds
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.runtime.session import AnytimeSession

LOADS = (0.5, 0.9, 1.3, 2.5)
IMAGES = 2000
ROUNDING = 1e-4  # of logits, in answers to batches
HOST = "127.0.0.1"
PROGRAM = (sys.executable, "-m", "anytime_lct.cli.main")


def prepare(run: Path, bundle: Path) -> AnytimeSession:
    """Analyze, export and calibrate where that is not done yet; return a session on the bundle."""
    steps = [
        (run / "profile.json", ("analyze", run)),
        (bundle, ("export", run, "--out", bundle)),
        (bundle.with_name(f"{bundle.name}.calibration.json"), ("calibrate", bundle)),
    ]
    for path, arguments in steps:
        if not path.exists():
            subprocess.run([*PROGRAM, *map(str, arguments)], check=True)
    return AnytimeSession(bundle)


def images_of(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the first test images, preprocessed, (B, C, H, W), and their classes, (B,)."""
    data = datasets.from_recipe(run_folder.open_run(run).recipe)
    pairs = [(x.numpy(), y.numpy()) for x, y in data.batches("test")]
    return np.concatenate([x for x, _ in pairs])[:IMAGES], np.concatenate([y for _, y in pairs])[:IMAGES]


@contextlib.contextmanager
def server(bundle: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run a server with one compute thread on a free port; on leaving it is stopped and must exit with 0."""
    command = [*PROGRAM, "serve", str(bundle), "--port", "0", "--cores", "1", "--json", *options]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # on SIGTERM this program stops its server first
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["address"].rpartition(":")[2].strip("/")), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        finally:
            process.kill()
        if code != 0:
            raise RuntimeError(f"The server ended with {code}.")


def whole_exit(session: AnytimeSession, exit: int, x: np.ndarray) -> np.ndarray:
    """Return the logits of the file exit_i.onnx in a plain onnxruntime session, (B, K), one image at a time."""
    import onnxruntime  # behind anytime_lct, which switches its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    whole = onnxruntime.InferenceSession(session.bundle.exit(exit), options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(whole.run(None, {"input": image[None]})[0]) for image in x])


def capacity(bundle: Path, deepest: int, messages: list[bytes], *options: str) -> float:
    """Return the requests per second that the server answers at full depth when one is always waiting."""
    rate, answered = 500.0, math.inf
    with server(bundle, "--fixed", str(deepest), *options) as (port, _):
        asyncio.run(open_loop(HOST, port, 20, 2, messages, seed=0))
        while answered > 0.7 * rate:
            rate *= 2
            start = time.perf_counter()
            exchanges = asyncio.run(open_loop(HOST, port, rate, 1.0, messages, seed=0))
            first, last = min(each.departure for each in exchanges), max(each.arrival for each in exchanges)
            answered = sum(each.status == 200 for each in exchanges) / (last - max(start, first))
    return answered


def judge(
    exchanges: list[Exchange], offline: np.ndarray, classes: np.ndarray, deadline: float, rounding: float = 0.0
) -> dict[str, Any]:
    """Summarise a load: shares in time and shed, exits, accuracy, and answers that differ from the sub-model's."""
    answered, correct, different, exits, in_time, stopped, seconds = [], 0, 0, {}, 0, {}, []
    for each in exchanges:
        logits = each.read()
        if logits is None:
            continue
        answered.append(each)
        image, exit = each.number % len(classes), each.facts["exit"]
        different += not np.abs(logits - offline[exit - 1, image]).max() <= rounding
        correct += int(logits.argmax()) == classes[image]
        exits[exit] = exits.get(exit, 0) + 1
        stopped[each.facts["stopped"]] = stopped.get(each.facts["stopped"], 0) + 1
        in_time += bool(each.facts["on_time"])
        seconds.append(each.facts["server_us"] / 1e6)
    latencies = sorted(each.latency for each in answered)
    status = {str(code): sum(each.status == code for each in exchanges) for code in {each.status for each in exchanges}}
    return {
        "sent": len(exchanges),
        "status": status,
        "answered": len(answered),
        "refused_share": 1 - len(answered) / len(exchanges),
        "on_time_share": in_time / max(1, len(answered)),
        "accuracy": correct / max(1, len(answered)),
        "exits": {str(exit): exits[exit] for exit in sorted(exits)},
        "stopped": stopped,
        "not_the_sub_models": different,
        "server_p50": float(np.quantile(seconds, 0.5)),
        "server_p999": float(np.quantile(seconds, 0.999)),
        "latency_p50": latencies[len(latencies) // 2],
        "latency_p99": latencies[int(0.99 * len(latencies))],
        "in_time_at_the_client_share": sum(each < deadline for each in latencies) / max(1, len(latencies)),
        "sent_late_p99": float(np.quantile([each.departure - each.scheduled for each in exchanges], 0.99)),
    }


def http_cost(session: AnytimeSession, bundle: Path, name: str, x: np.ndarray, rounds: int = 500) -> dict[str, Any]:
    """Return the seconds of a binary request on a plain socket, and of the same input in process, for every exit."""
    rows = {}
    with server(bundle) as (port, _), socket.create_connection((HOST, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for exit in session.served:
            message = request(HOST, name, x, {"max_exit": exit, "mode": "fixed"})
            http, in_process = [], []
            for turn in range(rounds + 20):
                start = time.perf_counter()
                connection.sendall(message)
                exchange = receive(connection)
                middle = time.perf_counter()
                logits = session.run_to(exit, x).logits
                end = time.perf_counter()
                if not np.array_equal(exchange.read(), logits[0]) or exchange.facts["exit"] != exit:
                    raise RuntimeError(f"Expected the logits of exit {exit}, got others.")
                if turn >= 20:
                    http.append(middle - start)
                    in_process.append(end - middle)
            rows[str(exit)] = {
                "http_p50": statistics.median(http),
                "in_process_p50": statistics.median(in_process),
                "more_p50": statistics.median(http) - statistics.median(in_process),
            }
            print(f"exit {exit}: {1e3 * rows[str(exit)]['more_p50']:.3f} ms over HTTP", flush=True)
    return rows


def receive(connection: socket.socket) -> Exchange:
    """Receive one answer."""
    head, separator, body = b"", b"", b""
    while not separator:
        head, separator, body = (head + connection.recv(1 << 16)).partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0]):
        body += connection.recv(1 << 16)
    return Exchange(0, 0.0, status=int(head[9:12]), head=head, body=body)


def over_seeds(rows: list[dict[str, Any]], mode: str, load: float, name: str) -> tuple[float, float]:
    """Return the mean and standard deviation over the seeds of one figure at one load."""
    values = [row[name] for row in rows if (row["mode"], row["load"]) == (mode, load)]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw on-time share and accuracy over load, both modes, mean and standard deviation over seeds."""
    figure = Figure(figsize=(8.6, 3.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, 2)
    loads = sorted({row["load"] for row in result["rows"]})
    labels = {"anytime": "as deep as time allows", "fixed": "fixed depth"}
    for axes, name, title in (
        (panels[0], "on_time_share", "answered in time, % of admitted"),
        (panels[1], "accuracy", "test accuracy of the answers, %"),
    ):
        for mode, colour in (("anytime", picture.BLUE), ("fixed", picture.GREY)):
            spreads = [over_seeds(result["rows"], mode, load, name) for load in loads]
            means, deviations = [100 * mean for mean, _ in spreads], [100 * deviation for _, deviation in spreads]
            axes.errorbar(loads, means, yerr=deviations, color=colour, marker="o", capsize=3, label=labels[mode])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("load, share of the capacity at full depth")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(0, 104)
    panels[0].legend(frameon=False)
    picture.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/serving"))
    parser.add_argument("--bundle", type=Path, help="Where the export is kept; default: beside the run.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--deadline", default="20ms")
    parser.add_argument("--batch", type=int, help="Let requests join too, into batches of up to so many.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    bundle = arguments.bundle or arguments.run.with_name(f"{arguments.run.name}.bundle")
    session = prepare(arguments.run, bundle)
    x, classes = images_of(arguments.run)
    offline = np.stack([whole_exit(session, i, x) for i in session.served])
    name = bundle.name.removesuffix(".bundle")
    messages = [request(HOST, name, image[None], {}) for image in x]
    path = arguments.out / "serving.json"
    earlier = json.loads(path.read_text()) if arguments.resume and path.exists() else {}
    result: dict[str, Any] = {
        "network": session.manifest.model,
        "deepest": session.choose(),
        "deadline_seconds": parse_seconds(arguments.deadline),
        "seconds": arguments.seconds,
        "exit_accuracy": {
            str(i): float((offline[k].argmax(axis=1) == classes).mean()) for k, i in enumerate(session.served)
        },
        "exit_seconds": {str(i): session.timing.to_exit(i, 1) for i in session.served} if session.timing else {},
        "http": earlier.get("http") or http_cost(session, bundle, name, x[:1]),
        "capacity": earlier.get("capacity") or capacity(bundle, session.choose(), messages),
        "rows": earlier.get("rows", []),
    }
    write("serving", result, arguments.out)
    print(f"capacity at full depth {result['capacity']:.1f} requests/s", flush=True)
    fixed = ("--fixed", str(session.choose()))
    # Of each table of rows: the capacity of which loads are shares, the mode, and the options of the server.
    cases: list[tuple[dict[str, Any], float, str, tuple[str, ...]]] = [
        (result, result["capacity"], "anytime", ()),
        (result, result["capacity"], "fixed", fixed),
    ]
    if arguments.batch:
        joins = ("--batch", str(arguments.batch))
        joining = result["joining"] = earlier.get("joining") or {"batch": arguments.batch, "at_its_capacity": {}}
        if "capacity" not in joining:
            joining["capacity"] = capacity(bundle, session.choose(), messages, *joins)
        print(f"capacity with joining {joining['capacity']:.1f} requests/s", flush=True)
        cases += [
            (joining, result["capacity"], "joining", joins),
            (joining["at_its_capacity"], joining["capacity"], "anytime", ()),
            (joining["at_its_capacity"], joining["capacity"], "joining", joins),
        ]
    for seed in range(arguments.seeds):
        for load in arguments.loads:
            for table, full, mode, options in cases:
                rows = table.setdefault("rows", [])
                if (seed, load, mode) in {(row["seed"], row["load"], row["mode"]) for row in rows}:
                    continue
                with server(bundle, "--deadline", arguments.deadline, *options) as (port, _):
                    # The first requests allocate buffers.
                    asyncio.run(open_loop(HOST, port, 20, 1, messages, seed=seed))
                    exchanges = asyncio.run(open_loop(HOST, port, load * full, arguments.seconds, messages, seed))
                rounding = ROUNDING if mode == "joining" else 0.0
                row = judge(exchanges, offline, classes, result["deadline_seconds"], rounding)
                rows.append({"seed": seed, "load": load, "mode": mode, "rate": load * full, **row})
                write("serving", result, arguments.out)
                print(
                    f"seed {seed} load {load} of {full:.0f}/s {mode:8s} on time {100 * row['on_time_share']:.3f}%  "
                    f"shed {100 * row['refused_share']:.2f}%  accuracy {100 * row['accuracy']:.2f}%  "
                    f"exits {row['exits']}  "
                    f"p99 {1e3 * row['latency_p99']:.1f} ms  wrong {row['not_the_sub_models']}",
                    flush=True,
                )
    draw(result, arguments.out / "serving.png")


if __name__ == "__main__":
    main()
