"""What a family of exits costs in training, by the default recipe: LCT, joint losses, and backprop.

1. In one process: the time of a step, in alternation, and the peak bytes of activations saved for backward. Backprop
   trains the main network alone, without exits.
2. As `anytime-lct train` runs it, one thread a process: the time of an epoch and the peak memory of a process, by LCT
   on two workers, too. Joint losses have a backward pass through all groups, and train in one process.

    python benchmarks/training_cost.py [--rounds 15] [--threads 1] [--process-rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import SavedBytes, ratios, write
from overhead import FACTS

from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes.fitting import fit
from anytime_lct.run_folder.build import build_network, traits
from anytime_lct.training.method import Method
from anytime_lct.training.methods.table import row_of
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock

NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-14": {"name": "resnet", "depth": 14},
    "EarlyWide": {"name": "earlywide"},
}
METHODS = ("joint", "lct", "bp")


def method_of(model: dict[str, Any], name: str, rows: int) -> tuple[LCTNetwork, Method]:
    recipe = reading.complete({"data": {"name": "cifar10"}, "model": model, "train": {"method": name}})
    row = row_of(name)
    network = build_network(recipe, FACTS, whole=not row.cuts, compare=False).train()
    recipe = fit(recipe, traits(network), rows)
    team = Team(torch.device("cpu"))
    return network, row.make(network, recipe, FACTS.task, Clock(10_000, 100, rows), team)


def costs(name: str, rounds: int, rows: int = 128) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x, y = torch.randn(rows, *FACTS.input_shape), torch.randint(0, FACTS.outputs, (rows,))
    methods = {method: method_of(NETWORKS[name], method, rows) for method in METHODS}
    peaks = {}
    for method, (network, training) in methods.items():
        with SavedBytes(network) as saved:
            training.step(Minibatch(x, y, 0))
        peaks[method] = saved.peak
    times = ratios([lambda t=t: t.step(Minibatch(x, y, 0)) for _, t in methods.values()], rounds)
    result = [{"network": name, "batch": rows, "method": method, "peak_bytes": peaks[method], **row}
              for method, row in zip(METHODS, times, strict=True)]  # fmt: skip
    for row in result:
        share = row["peak_bytes"] / peaks["joint"]
        print(f"{name:10s} {row['method']:6s} {row['median_ratio']:.2f} of the time of joint losses, {share:.2f} of "
              f"its bytes ({row['peak_bytes'] / 2**20:.0f} MiB)", flush=True)  # fmt: skip
    return result


FACTORY = """
import torch
from torch.utils.data import TensorDataset

def make():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, ({count}, 3, 32, 32), dtype=torch.uint8, generator=generator)
    few = TensorDataset(images[:10], torch.arange(10))
    return {{"train": TensorDataset(images, torch.arange({count}) % 10), "validation": few, "test": few}}
"""
ON_PROCESSES = {  # the first is the unit
    "joint losses, 1 process": ("joint", ()),
    "LCT, 1 process": ("lct", ()),
    "LCT, 2 workers": ("lct", ("--workers", "2")),
}


def on_processes(rounds: int, steps: int = 8, rows: int = 128) -> list[dict[str, Any]]:
    """Train ResNet-14 for two epochs by each way in turn; the second one counts."""
    seconds: dict[str, list[float]] = {name: [] for name in ON_PROCESSES}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "noise.py").write_text(FACTORY.format(count=steps * rows), encoding="utf-8")
        for number in range(rounds):
            for name, (method, share) in ON_PROCESSES.items():
                run = Path(scratch) / f"{method}{''.join(share)}-{number}"
                settings = ["model.depth=14", f"data.batch_size={rows}"]
                arguments = ["--data", f"{scratch}/noise.py:make", "--model", "resnet", "--method", method, *share]
                arguments += ["--epochs", "2", *(word for setting in settings for word in ("--set", setting))]
                command = [sys.executable, "-m", "anytime_lct.cli.main", "train", *arguments, "--run-dir", str(run)]
                threads = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, env=threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                seconds[name].append(json.loads(lines[-1])["seconds"])
                peaks[name] = max(json.loads((run / "memory.json").read_text(encoding="utf-8"))["peak_bytes"])
    unit = seconds[next(iter(seconds))]
    result = [{"way": name, "seconds": times, "peak_bytes": peaks[name],
               "median_ratio": statistics.median(a / b for a, b in zip(times, unit, strict=True))}
              for name, times in seconds.items()]  # fmt: skip
    for row in result:
        print(f"{row['way']:26s} {row['median_ratio']:.2f} of the time, {row['peak_bytes'] / 2**20:.0f} MiB a process")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--process-rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "steps": [row for name in NETWORKS for row in costs(name, arguments.rounds)],
        "processes": on_processes(arguments.process_rounds),
    }
    print(f"wrote {write('training_cost', result)}")


if __name__ == "__main__":
    main()
