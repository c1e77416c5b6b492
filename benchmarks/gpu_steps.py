"""Milliseconds of a training step on a GPU, as one thing after another is added that makes it fast.

1. as a loop without any of it: minibatches made on the CPU, sums that wait for the device
2. images stay on the device: gathered, moved and mirrored there
3. nothing waits: the host never reads from the device
4. steps are recorded once as a CUDA graph, and replayed
5. bfloat16
6. channels last
7. local critic training alone: groups run side by side, each on a lane of the GPU

Beside it, the milliseconds in which the host launches a step: where they are as many, the host is the limit.
ResNet-14 at 32x32 and ResNet-50 at 224x224, by backprop and by local critic training with 4 groups, on random images.

    python benchmarks/gpu_steps.py [--out results.json] [--device cuda] [--steps 50]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.data.batches import ImageBatches, Images
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder.build import build_network
from anytime_lct.task import Facts
from anytime_lct.training.lanes import Lanes
from anytime_lct.training.learner import Clock
from anytime_lct.training.methods.table import METHODS
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.replay import WARM_UP, step_of

LAUNCHED = 3  # steps that the host launches without being held up by a full queue
NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {  # options, side of an image, rows of a minibatch
    "ResNet-14": ({"name": "resnet", "depth": 14}, 32, 128),
    "ResNet-50": ({"name": "torchvision:resnet50"}, 224, 64),
}


@dataclass(frozen=True)
class Way:
    """How a step runs: what the rows of the table add one by one."""

    name: str
    on_device: bool = True
    waits: bool = False
    recorded: bool = True
    precision: str = "bfloat16"
    channels_last: bool = False
    lanes: bool = False


WAYS = (
    Way("plain", on_device=False, waits=True, recorded=False, precision="float32"),
    Way("images on the device", waits=True, recorded=False, precision="float32"),
    Way("no waits", recorded=False, precision="float32"),
    Way("recorded", precision="float32"),
    Way("bfloat16"),
    Way("channels last", channels_last=True),
    Way("lanes", channels_last=True, lanes=True),
)


def images(side: int, rows: int) -> ImageBatches:
    count = 8 * rows
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    part = (Images(torch.arange(count) % 10, (3, side, side), pixels), torch.arange(count))
    facts = Facts("random", "classification", (3, side, side), 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    return ImageBatches(facts, "crop-flip", {"train": part}, rows, 0, 0)


def recipe_for(model: dict[str, Any], method: str) -> Recipe:
    tables = {
        "train": {"method": method, "clip_norm": 0.0},
        "cut": {"groups": 4},
        "groups_schedule": {"name": "cosine"},
    }
    optimizers = {name: {"name": "sgd", "lr": 1e-3, "weight_decay": 5e-4} for name in ("groups", "critics")}
    return recipes.complete({"data": {"name": "cifar10"}, "model": model, **tables, **optimizers})


def endless(data: ImageBatches) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from data.batches("train", epoch)
        epoch += 1


def milliseconds(
    network: LCTNetwork, recipe: Recipe, data: ImageBatches, way: Way, device: torch.device, steps: int
) -> tuple[float, float]:
    """Return the time of a step, minibatch and sums of losses included, and the host's; the best of some stretches."""
    train = recipe.train.model_copy(update={"precision": way.precision, "channels_last": way.channels_last})
    recipe = recipe.model_copy(update={"train": train})
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    network = copy.deepcopy(network).to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    team = Team(device)
    method = METHODS[train.method].make(network, recipe, "classification", Clock(10_000, 100), team)
    if isinstance(method, Worker) and not way.lanes:
        method.lanes = Lanes(device, 0)
    step = step_of(method, team) if way.recorded else method.step
    batches = endless(data.to(device) if way.on_device else data)
    sums = torch.zeros(2, len(method.exits), dtype=torch.float64, device=device)
    columns: Any = [exit_ - 1 for exit_ in method.exits] if way.waits else slice(0, len(method.exits))
    number, times = 0, list[tuple[float, float]]()
    method.start_epoch()
    for count in (WARM_UP + 4, *[LAUNCHED] * 3, *[steps] * 3):
        finish(device)
        start = time.perf_counter()
        for _ in range(count):
            x, y = (part.to(device, non_blocking=True) for part in next(batches))
            losses = step(Minibatch(x.contiguous(memory_format=layout), y, number))
            sums[0, columns] += losses * len(y)
            sums[1, columns] += len(y)
            number += 1
        launched = time.perf_counter()
        finish(device)
        times.append((1000 * (time.perf_counter() - start) / count, 1000 * (launched - start) / count))
    return min(whole for whole, _ in times[-3:]), min(host for _, host in times[1:4])


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file, written after every figure")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50, help="steps of ResNet-14 in a stretch; a fifth for ResNet-50")
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--ways", nargs="+", default=[way.name for way in WAYS], choices=[way.name for way in WAYS])
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    torch.set_float32_matmul_precision("high")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    for name in options.networks:
        model, side, batch = NETWORKS[name]
        data, steps = images(side, batch), options.steps if name == "ResNet-14" else max(1, options.steps // 5)
        for method in ("bp", "lct"):
            recipe = recipe_for(model, method)
            network = build_network(recipe, data.facts, whole=method == "bp", compare=False)
            for way in WAYS if method == "lct" else WAYS[:-1]:
                if way.name not in options.ways:
                    continue
                whole, host = milliseconds(network, recipe, data, way, device, steps)
                times = {"ms": round(whole, 3), "host_ms": round(host, 3)}
                rows.append({"network": name, "method": method, **times, **asdict(way)})
                print(f"{name:10} {method:4} {way.name:22} {whole:8.2f} ms, host {host:8.2f} ms", flush=True)
                if options.out:
                    result = {"device": card, "torch": torch.__version__, "rows": rows}
                    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
