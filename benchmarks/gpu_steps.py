"""Milliseconds of a training step on a GPU, as one thing after another is added that makes it fast.

1. as a loop without any of it: minibatches made on the CPU, sums that wait for the device
2. images stay on the device: gathered, moved and mirrored there
3. nothing waits: the host never reads from the device
4. steps are recorded once as a CUDA graph, and replayed
5. bfloat16
6. channels last
7. local critic training alone: groups run side by side, each on a lane of the GPU
8. compiled by torch.compile, and recorded

Beside it, the milliseconds in which the host launches a step: where they are as many, the host is the limit. By
backprop, by local critic training with 4 groups and by joint losses, on random images and characters.

    python benchmarks/gpu_steps.py [--out results.json] [--device cuda] [--steps 50]
    python benchmarks/gpu_steps.py --networks ResNet-50 LSTM --methods lct --ways "channels last" compiled
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.data.batches import Dataset, ImageBatches, Images
from anytime_lct.data.text import TextBatches
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder.build import build_network
from anytime_lct.task import Facts
from anytime_lct.training.lanes import Lanes
from anytime_lct.training.methods.table import METHODS
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.replay import WARM_UP, step_of
from anytime_lct.training.schedule import Clock

LAUNCHED = 3  # steps that the host launches without being held up by a full queue
CHARACTERS = 150  # of a sequence
CALM = ("plain", "no waits", "bfloat16", "compiled")  # ways of a network without maps


@dataclass(frozen=True)
class Bench:
    """A network and its minibatch: images of `side`, or characters where that is 0; `share` of --steps is measured."""

    model: dict[str, Any]
    side: int
    rows: int
    share: float = 1.0


BENCHES = {
    "ResNet-14": Bench({"name": "resnet", "depth": 14}, 32, 128),
    "ResNet-20": Bench({"name": "resnet", "depth": 20}, 32, 128),
    "ResNet-50, 32x32": Bench({"name": "torchvision:resnet50"}, 32, 128, 0.4),
    "ResNet-50": Bench({"name": "torchvision:resnet50"}, 224, 64, 0.2),
    "LSTM": Bench({"name": "lstm", "layers": 4, "units": 256, "embedding": 64}, 0, 64, 0.4),
}
METHOD_NAMES = ("bp", "lct", "joint")


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
    compiled: bool = False


WAYS = (
    Way("plain", on_device=False, waits=True, recorded=False, precision="float32"),
    Way("images on the device", waits=True, recorded=False, precision="float32"),
    Way("no waits", recorded=False, precision="float32"),
    Way("recorded", precision="float32"),
    Way("bfloat16"),
    Way("channels last", channels_last=True),
    Way("lanes", channels_last=True, lanes=True),
    Way("compiled", channels_last=True, compiled=True),
)


def minibatches(bench: Bench, rows: int) -> Dataset:
    """Return random images or characters for minibatches of `rows`."""
    generator = torch.Generator().manual_seed(0)
    if not bench.side:
        characters = torch.randint(0, 50, (8 * rows * CHARACTERS + 1,), dtype=torch.int32, generator=generator)
        symbols = tuple(map(chr, range(48, 98)))
        facts = Facts("text", "language-model", (CHARACTERS,), 50, symbols)
        return TextBatches(facts, {"train": characters}, rows, CHARACTERS)
    count, shape = 8 * rows, (3, bench.side, bench.side)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    part = (Images(torch.arange(count) % 10, shape, pixels), torch.arange(count))
    facts = Facts("cifar10", "classification", shape, 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    return ImageBatches(facts, "crop-flip", {"train": part}, rows, 0, 0)


def recipe_for(bench: Bench, method: str) -> Recipe:
    tables = {
        "train": {"method": method, "clip_norm": 0.0},
        "cut": {"groups": 4},
        "groups_schedule": {"name": "cosine"},
    }
    optimizers = {name: {"name": "sgd", "lr": 1e-3, "weight_decay": 5e-4} for name in ("groups", "critics")}
    data = {"name": "cifar10"} if bench.side else {"name": "text", "path": "none"}
    return recipes.complete({"data": data, "model": bench.model, **tables, **optimizers})


def endless(data: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from data.batches("train", epoch)
        epoch += 1


def milliseconds(
    network: LCTNetwork, recipe: Recipe, data: Dataset, way: Way, device: torch.device, steps: int
) -> tuple[float, float]:
    """Return the time of a step, minibatch and sums of losses included, and the host's; the best of some stretches."""
    fast = {"precision": way.precision, "channels_last": way.channels_last, "compile": way.compiled}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=fast)})
    layout = torch.channels_last if way.channels_last and len(data.facts.input_shape) == 3 else torch.contiguous_format
    network = copy.deepcopy(network).to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    team = Team(device)
    method = METHODS[recipe.train.method].make(network, recipe, data.facts.task, Clock(10_000, 100), team)
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


def rows(
    device: torch.device, names: Sequence[str], methods: Sequence[str], ways: Sequence[Way], steps: int, batch: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a row of the table as soon as it is measured; a `batch` replaces the size of all minibatches."""
    torch.set_float32_matmul_precision("high")
    for name in names:
        bench = BENCHES[name]
        data = minibatches(bench, batch or bench.rows)
        for method in methods:
            recipe = recipe_for(bench, method)
            network = build_network(recipe, data.facts, whole=method == "bp", compare=False)
            for way in ways:
                if (way.lanes and method != "lct") or not (bench.side or way.name in CALM):
                    continue
                count = max(1, round(bench.share * steps))
                whole, host = milliseconds(network, recipe, data, way, device, count)
                print(f"{name:16} {method:5} {way.name:22} {whole:8.2f} ms, host {host:8.2f} ms", flush=True)
                times = {"ms": round(whole, 3), "host_ms": round(host, 3)}
                yield {"network": name, "method": method, **times, **asdict(way)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file, written after every figure")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50, help="steps of ResNet-14 in a stretch; fewer for larger ones")
    parser.add_argument("--networks", nargs="+", default=["ResNet-14", "ResNet-50"], choices=[*BENCHES])
    parser.add_argument("--methods", nargs="+", default=["bp", "lct"], choices=METHOD_NAMES)
    names = [way.name for way in WAYS]
    parser.add_argument("--ways", nargs="+", default=names[:-1], choices=names)
    options = parser.parse_args()
    device = torch.device(options.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    ways = [way for way in WAYS if way.name in options.ways]
    result: dict[str, Any] = {"device": card, "torch": torch.__version__, "rows": []}
    for row in rows(device, options.networks, options.methods, ways, options.steps):
        result["rows"].append(row)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
