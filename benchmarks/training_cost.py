"""What a family of exits costs in training, by the default recipe in one process: LCT, joint losses, and backprop.

Time of a step, in alternation, and the peak bytes of activations saved for backward. Backprop trains the main network
alone, without exits.

    python benchmarks/training_cost.py [--rounds 15] [--threads 1]
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {"steps": [row for name in NETWORKS for row in costs(name, arguments.rounds)]}
    print(f"wrote {write('training_cost', result)}")


if __name__ == "__main__":
    main()
