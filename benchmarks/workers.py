"""Local critic training on several workers against backprop, pipelines and data parallelism; one thread per process.

1. Throughput of 2 workers against backprop in one process; the share of waiting; the period over the slowest worker's
   own compute.
2. Against 1F1B and GPipe on the same 2 workers and cuts, each at its best number of microbatches, and against
   DistributedDataParallel; the latter also over a link of 100 Mbit/s between two network namespaces (needs root).
3. Peak memory of the largest worker against backprop's, for 2 and 4 groups cut by memory.
4. The simulator: the period predicted from the measured times of every group, against the measured one for 2 workers;
   and the predicted scaling to 4, 8 and 16 workers on a ResNet-152 and an LSTM of 16 layers.
5. Training loss over wall time on Fashion-MNIST, two processes each, as a picture.

    python benchmarks/workers.py [--only compare throttled memory simulator scaling picture] [--rounds 5]

Each part is written to results/workers.json as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, write
from simulator import Group, Stage, Wire, local_critics, pipelined, run
from workers_process import facts_of

from anytime_lct.critics.places import choose_places
from anytime_lct.models import networks as models
from anytime_lct.recipes.recipe import CutRecipe
from anytime_lct.training.memory import keep_freed_memory

LSTM = {"name": "lstm", "units": 600, "embedding": 128}
CASES: dict[str, dict[str, Any]] = {
    "resnet50": {"model": {"name": "resnet50"}, "batch": 32, "count": 3},
    "resnet20": {"model": {"name": "resnet20"}, "batch": 128, "count": 12},
    "lstm": {"model": {**LSTM, "layers": 4}, "batch": 32, "length": 50, "count": 3},
}
DEEP: dict[str, dict[str, Any]] = {
    "resnet152": {"model": {"name": "resnet152"}, "batch": 32},
    "lstm16": {"model": {**LSTM, "layers": 16}, "batch": 32, "length": 50},
}
MICROBATCHES = (2, 4, 8)
REPEATS = 5  # of a group that is measured by itself
PICTURED = (
    "--data fashion-mnist --model resnet --set model.depth=14 --set model.width=16 --groups 2 --epochs 4 "
    "--set groups_schedule.name=one-cycle --set data.augment=none --set critic.kind=slim "
    "--set rule.critic_loss=paper --set critics.name=adam --set critics.lr=1e-4 "
    "--set critics_schedule.name=step --set critics_schedule.milestones=[0.5,0.75]"
).split()
PROCESS = Path(__file__).with_name("workers_process.py")
PARTS = ("compare", "throttled", "memory", "simulator", "scaling", "picture")


def places_of(case: dict[str, Any], num_groups: int, by: Any, weight_copies: int = 0) -> list[str]:
    facts, rows = facts_of(case), case["batch"]
    text = facts.task == "language-model"
    options = {key: value for key, value in case["model"].items() if key != "name"}
    torch.manual_seed(0)
    model = models.build(case["model"]["name"], facts.input_shape, facts.outputs, **options)
    example = torch.zeros(rows, *facts.input_shape, dtype=torch.int64 if text else torch.float32)
    return list(
        choose_places(model, example, CutRecipe(groups=num_groups, by=by), task=facts.task, weight_copies=weight_copies)
    )


def measured_places(case: dict[str, Any], num_groups: int) -> list[str]:
    """Return the cut of least seconds, measured by two processes at the same time."""
    return launch({"what": "places", "case": case, "groups": num_groups}, 2)


def launch(job: dict[str, Any], size: int, hosts: Sequence[dict[str, Any]] = ()) -> Any:
    """Run `size` processes of workers_process.py, on `hosts` if there are any; return the result of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(json.dumps(job))
        processes = []
        for rank in range(size):
            host = hosts[rank] if hosts else {"prefix": [], "address": "127.0.0.1", "env": {}}
            variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
            first = hosts[0]["address"] if hosts else "127.0.0.1"
            environment = {**os.environ, **variables, "MASTER_ADDR": first, "MASTER_PORT": str(port), **host["env"]}
            program = [sys.executable, str(PROCESS), str(job_file), str(result_file)]
            processes.append(subprocess.Popen([*host["prefix"], *program], env=environment))
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise SystemExit(f"The processes ended with {codes}.")
        return json.loads(result_file.read_text())


Process = dict[str, list[float]]  # "ends": times when its minibatches ended; "waiting": its seconds in links until then


def period(processes: Sequence[Process]) -> float:
    """Return the seconds between two minibatches of a full pipeline, on the worker where they are longest."""
    return max(_mean_step(process["ends"]) for process in processes if process["ends"])


def own_work(process: Process) -> float:
    """Return the seconds per minibatch that a process does not spend in its links."""
    return _mean_step(process["ends"]) - _mean_step(process["waiting"])


def _mean_step(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def spread(values: Sequence[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "quartiles": [low, high]}


def variants_of(places: list[str]) -> dict[str, dict[str, Any]]:
    cut = {"places": places, "bounds": list(range(len(places) + 2))}
    variants: dict[str, dict[str, Any]] = {"backprop": {"method": "bp"}, "lct": {"method": "lct", **cut}}
    for schedule in ("1f1b", "gpipe"):
        for m in MICROBATCHES:
            variants[f"{schedule}-{m}"] = {"method": schedule, **cut, "train": {"microbatches": m}}
    return {**variants, "ddp": {"method": "bp", "ddp": True}}


def compare(rounds: int) -> dict[str, Any]:
    rows = {}
    for name, case in CASES.items():
        places = measured_places(case, 2)
        job = {"what": "compare", "case": case, "variants": variants_of(places), "rounds": rounds}
        results = launch({**job, "count": case["count"]}, 2)
        periods = {variant: [period(round_[variant]) for round_ in results] for variant in job["variants"]}
        best = {
            schedule: min((v for v in periods if v.startswith(schedule)), key=lambda v: statistics.median(periods[v]))
            for schedule in ("1f1b", "gpipe")
        }
        works = [[own_work(process) for process in round_["lct"]] for round_ in results]
        lct_rounds = list(zip(works, periods["lct"], strict=True))
        row: dict[str, Any] = {"case": case, "places": places, "rounds": rounds}
        row["seconds"] = {variant: spread(times) for variant, times in periods.items()}
        row["best"] = best
        row["lct_times_faster_than"] = {
            variant: spread([a / b for a, b in zip(periods[variant], periods["lct"], strict=True)])
            for variant in periods
        }
        row["waiting_share"] = [spread([1 - work[w] / whole for work, whole in lct_rounds]) for w in range(2)]
        row["period_to_slowest_compute"] = spread([whole / max(work) for work, whole in lct_rounds])
        rows[name] = row
        faster = row["lct_times_faster_than"]
        print(
            f"{name}, cut after {places[0]}: {faster['backprop']['median']:.3f} times backprop's throughput; 1F1B "
            f"{faster[best['1f1b']]['median']:.3f}, GPipe {faster[best['gpipe']]['median']:.3f}, DDP "
            f"{faster['ddp']['median']:.3f}; waiting {[round(s['median'], 3) for s in row['waiting_share']]}, period "
            f"{row['period_to_slowest_compute']['median']:.3f} of the slowest worker's compute",
            flush=True,
        )
    return rows


def throttled(rounds: int) -> dict[str, Any]:
    """Compare with DDP over 100 Mbit/s: ResNet-50, global batch 32, two network namespaces."""
    case, rows = CASES["resnet50"], {}
    places = measured_places(case, 2)
    hosts = namespaces("100mbit")
    try:
        for wire in ("exact", "bf16"):
            variants = {k: v for k, v in variants_of(places).items() if k in ("lct", "ddp")}
            variants["ddp"]["train"] = {"wire": wire}
            job = {"what": "compare", "case": case, "variants": variants, "rounds": rounds, "count": 3, "wire": wire}
            results = launch(job, 2, hosts)
            periods = {variant: [period(round_[variant]) for round_ in results] for variant in variants}
            faster = spread([a / b for a, b in zip(periods["ddp"], periods["lct"], strict=True)])
            rows[wire] = {"places": places, "seconds": {v: spread(t) for v, t in periods.items()}, "faster": faster}
            print(f"ResNet-50 over 100 Mbit/s, {wire}: {faster['median']:.2f} times DDP", flush=True)
    finally:
        for k in range(2):
            subprocess.run(["ip", "netns", "del", f"lct{k}"], check=False)
    return rows


def namespaces(rate: str) -> list[dict[str, Any]]:
    """Create two network namespaces joined by a link of `rate`; needs root and iproute2. Return them as hosts."""
    hosts = []
    for k in range(2):
        subprocess.run(["ip", "netns", "del", f"lct{k}"], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "add", f"lct{k}"], check=True)
    link = "ip link add veth0 netns lct0 type veth peer name veth1 netns lct1"
    subprocess.run(link.split(), check=True)
    for k in range(2):
        prefix = ["ip", "netns", "exec", f"lct{k}"]
        for line in (
            f"ip addr add 10.77.0.{k + 1}/24 dev veth{k}",
            f"ip link set veth{k} up",
            "ip link set lo up",
            f"tc qdisc add dev veth{k} root tbf rate {rate} burst 256kb latency 100ms",
        ):
            subprocess.run([*prefix, *line.split()], check=True)
        hosts.append({"prefix": prefix, "address": f"10.77.0.{k + 1}", "env": {"GLOO_SOCKET_IFNAME": f"veth{k}"}})
    return hosts


def memory(rounds: int) -> dict[str, Any]:
    """Measure the peak bytes of every worker: ResNet-50 in channels-last, the LSTM at the paper's minibatch."""
    rows = {}
    for name, case, copies, train in (
        ("resnet50", CASES["resnet50"], 3, {"channels_last": True}),
        ("lstm", {**CASES["lstm"], "batch": 128, "length": 150}, 4, {}),
    ):
        job = {"what": "memory", "case": case, "count": 1}
        whole = launch({**job, "variant": {"method": "bp", "train": train}}, 1)[0]
        row: dict[str, Any] = {"case": case, "train": train, "backprop": whole}
        for N in (2, 4):
            places = places_of(case, N, "memory", copies)
            variant = {"method": "lct", "places": places, "bounds": list(range(N + 1)), "train": train}
            workers = launch({**job, "variant": variant}, N)
            share = {kind: max(worker[kind] for worker in workers) / whole[kind] for kind in whole}
            row[str(N)] = {"places": places, "workers": workers, "largest_share": share}
            mebibytes = [round(worker["allocated"] / 2**20) for worker in workers]
            print(f"memory {name}, N = {N}: {mebibytes} MiB allocated, largest over backprop's {share}", flush=True)
        rows[name] = row
    return rows


def simulator(rounds: int) -> dict[str, Any]:
    """Return the predicted period over the measured one, for 2 workers, both in the same processes."""
    measured = json.loads((RESULTS / "workers.json").read_text())["compare"]
    rows: dict[str, Any] = {}
    for name, case in CASES.items():
        names = ("lct", *measured[name]["best"].values())
        variants = {name: spec for name, spec in variants_of(measured[name]["places"]).items() if name in names}
        job = {"what": "simulate", "case": case, "places": measured[name]["places"], "variants": variants}
        job |= {"rounds": rounds, "repeats": REPEATS, "count": case["count"], "microbatches": MICROBATCHES}
        results, row = launch(job, 2), {}
        for variant in variants:
            predicted = [predict(round_["profile"], variant) for round_ in results]
            real = [period(round_["real"][variant]) for round_ in results]
            ratio = spread([a / b for a, b in zip(predicted, real, strict=True)])
            row[variant] = {"predicted": spread(predicted), "measured": spread(real), "ratio": ratio}
            print(f"simulator {name} {variant}: {ratio['median']:.3f} of measured", flush=True)
        rows[name] = row
    return rows


def scaling(rounds: int) -> dict[str, Any]:
    """Simulate more workers than there are cores, with a critic behind every worker but the last."""
    rows: dict[str, Any] = {}
    for name, case in {"resnet50": CASES["resnet50"], "lstm": CASES["lstm"], **DEEP}.items():
        for W in (4, 8, 16) if name in DEEP else (4,):
            places = measured_places(case, W)
            microbatches = [m for m in (4, 8, 16, 32) if m >= W]  # 1F1B takes no fewer microbatches than workers
            seconds = profile(case, places, microbatches)
            periods = {"lct": predict(seconds, "lct")}
            for schedule in ("1f1b", "gpipe"):
                periods[schedule] = min(predict(seconds, f"{schedule}-{m}") for m in microbatches)
            alone = sum(g["lct"]["forward"] + g["lct"]["descend"] for g in seconds["groups"])
            best = min(periods["1f1b"], periods["gpipe"])
            row = {"places": places, "seconds": periods, "lct_times_faster_than_pipelines": best / periods["lct"]}
            row["groups_one_after_the_other"] = alone
            row["lct_speedup"] = alone / periods["lct"]
            rows[f"{name}-{W}"] = row
            print(
                f"{name}, {W} workers simulated: speed-up {row['lct_speedup']:.2f}, {best / periods['lct']:.2f} times "
                f"the better pipeline",
                flush=True,
            )
    return rows


def profile(case: dict[str, Any], places: list[str], microbatches: Sequence[int]) -> dict[str, Any]:
    job = {"what": "profile", "case": case, "places": places, "microbatches": list(microbatches), "repeats": REPEATS}
    return launch(job, 2)


def predict(seconds: dict[str, Any], variant: str) -> float:
    """Return the period of a variant with one worker per group, from the seconds that `profile` measured."""
    wire = Wire(**seconds["wire"])
    schedule, _, m = variant.partition("-")
    if schedule == "lct":
        return run(local_critics([[Group(**group["lct"])] for group in seconds["groups"]]), wire)
    stages = [next(s for s in group["stages"] if s["microbatches"] == int(m)) for group in seconds["groups"]]
    inputs = [Stage(**{key: s[key] for key in ("forward", "backward", "step", "bytes")}) for s in stages]
    return run(pipelined(inputs, int(m), schedule), wire)


def picture(rounds: int, data_root: str | None = None) -> dict[str, Any]:
    """Train on Fashion-MNIST by each method; return the main network's loss and accuracy, and seconds, by epoch."""
    runs = {
        "backprop, 1 process": ["--method", "bp"],
        "DDP, 2 processes": ["--method", "bp", "--replicas", "2"],
        "1F1B, 2 processes": ["--method", "1f1b", "--workers", "2", "--set", "cut.by=measured"],
        "LCT, 2 processes": ["--workers", "2", "--set", "cut.by=measured"],
    }
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in runs.items():
            path = Path(folder) / name.split(",")[0]
            program = [sys.executable, "-m", "anytime_lct.cli.main", "train", "--run-dir", str(path), *PICTURED, *flags]
            program += ["--data-root", data_root] if data_root else []
            subprocess.run(program, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            rows[name] = {
                "seconds": list(accumulate(line["seconds"] for line in lines)),
                "train_loss": [line["train"]["loss"][-1] for line in lines],
                "validation_accuracy": [line["validation"]["accuracy"][-1] for line in lines],
            }
            print(f"{name}: {rows[name]['seconds'][-1]:.0f} s, loss {rows[name]['train_loss'][-1]:.3f}", flush=True)
    draw(rows)
    return {"recipe": " ".join(PICTURED), "seed": 0, "runs": rows}


def draw(rows: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, row in rows.items():
        axes.plot(row["seconds"], row["train_loss"], marker="o", markersize=3, label=name)
    axes.set(xlabel="seconds of training, one thread a process", ylabel="training loss of the main network")
    axes.set_title("Fashion-MNIST, residual network of 14 layers")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(RESULTS / "workers.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-root", help="folder that contains Fashion-MNIST")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    path = RESULTS / "workers.json"
    for part in arguments.only:
        result = globals()[part](arguments.rounds, **({"data_root": arguments.data_root} if part == "picture" else {}))
        earlier = json.loads(path.read_text()) if path.exists() else {}
        earlier.pop("measured_on", None)
        write("workers", {**earlier, part: result})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
