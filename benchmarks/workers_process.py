"""One of the processes that benchmarks/workers.py starts: runs every variant in turns, and tells what it measured.

All variants of a comparison live in the same two processes, one thread each, and take turns; between turns all wait
for each other. The period of a turn is the time between two minibatches once the pipeline is full, on the worker where
it is longest.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from anytime_lct import recipe as recipes
from anytime_lct.baselines import METHODS
from anytime_lct.learner import Clock
from anytime_lct.recipe import Recipe
from anytime_lct.run_folder import build_network
from anytime_lct.task import Facts, losses
from anytime_lct.training.group import GroupInTraining
from anytime_lct.training.links import Link, Minibatch
from anytime_lct.training.team import Team, join
from anytime_lct.training.worker import Worker

CPU = torch.device("cpu")
FILL = 3  # minibatches until every worker has one, and one more
IMAGES = Facts("random", "classification", (3, 32, 32), 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
ALPHABET = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX")


def facts_of(case: dict[str, Any]) -> Facts:
    if case["model"]["name"] == "lstm":
        return Facts("random", "language-model", (case["length"],), len(ALPHABET), ALPHABET)
    return IMAGES


def recipe_of(case: dict[str, Any], method: str, places: list[str], **train: Any) -> Recipe:
    text = case["model"]["name"] == "lstm"
    return recipes.complete(
        {
            "data": {"name": "text" if text else "cifar10", "path": "random", "batch_size": case["batch"]},
            "model": case["model"],
            "cut": {"places": places} if places else {"groups": 1},
            "train": {"epochs": 1, "method": method, **train},
        }
    )


def minibatch(case: dict[str, Any], step: int = 0, last: bool = False, part: tuple[int, int] = (0, 1)) -> Minibatch:
    facts, rows = facts_of(case), case["batch"]
    draw = torch.Generator().manual_seed(0)
    if facts.task == "classification":
        x = torch.randn(rows, *facts.input_shape, generator=draw)
        y = torch.randint(0, facts.outputs, (rows,), generator=draw)
    else:
        x, y = (torch.randint(0, facts.outputs, (rows, case["length"]), generator=draw) for _ in range(2))
    k, n = part
    x, y = x.tensor_split(n)[k], y.tensor_split(n)[k]
    return Minibatch(x, y, step, last, rows=len(y), joint=rows)


class Waiting:
    """Seconds that a worker spends in its links: sending, and waiting for what is to come."""

    def __init__(self, team: Team) -> None:
        self.seconds = 0.0
        for edge in (team.previous, team.next):
            if edge is not None:
                for link in (edge.down, edge.up):
                    self._time(link)

    def _time(self, link: Link) -> None:
        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def inside(*arguments: Any) -> Any:
                start = time.monotonic()
                try:
                    return call(*arguments)
                finally:
                    self.seconds += time.monotonic() - start

            return inside

        link.send, link.receive = timed(link.send), timed(link.receive)  # type: ignore[method-assign]


class Variant:
    """A method in this process, or nothing where it does not take part: `turn` runs minibatches and times them."""

    def __init__(self, case: dict[str, Any], spec: dict[str, Any], team: Team, waiting: Waiting) -> None:
        self.case, self.waiting, self.at = case, waiting, 0
        method = spec["method"]
        clock = Clock(1_000_000, 1_000_000)
        self.team = Team(CPU, 0, 1, team.worker, team.workers, equals=dist.group.WORLD) if spec.get("ddp") else team
        self.alone = method == "bp" and not spec.get("ddp")
        if self.alone:
            self.team = Team(CPU)
        self.method: Any = None
        if self.alone and team.worker > 0:
            return
        told = recipe_of(case, method, spec.get("places", []), **spec.get("train", {}))
        network = build_network(told, facts_of(case), stages=method in recipes.PIPELINES).train()
        self.team.bounds = tuple(spec.get("bounds", (0, 1)))
        make: Any = METHODS.get(method, Worker.of)
        self.method = make(network, told, facts_of(case).task, clock, self.team)
        self.part = (self.team.replica, self.team.replicas)
        self.method.start_epoch()

    def turn(self, count: int) -> dict[str, Any]:
        """Run FILL + count minibatches; return when each ended and the seconds spent in links after the first."""
        if self.method is None:
            return {"ends": [], "waiting": []}
        ends, waited = [], []
        for batch in self._minibatches(FILL + count):
            self.method.step(batch)
            ends.append(time.monotonic())
            waited.append(self.waiting.seconds)
        self.at += FILL + count
        return {"ends": ends, "waiting": waited}

    def _minibatches(self, count: int) -> Iterator[Minibatch]:
        if self.team.previous is not None:
            yield from self.team.previous.minibatches(self.at)
            return
        for k in range(count):
            yield minibatch(self.case, self.at + k, k == count - 1, self.part)


def compare(told: dict[str, Any], team: Team) -> list[dict[str, Any]]:
    """Return, for each round and variant, what every process measured."""
    waiting = Waiting(team)
    variants = {name: Variant(told["case"], spec, team, waiting) for name, spec in told["variants"].items()}
    rounds = []
    for number in range(-1, told["rounds"]):  # the first one warms up
        order = list(variants) if number % 2 else list(reversed(variants))
        found = {}
        for name in order:
            dist.barrier()
            mine = variants[name].turn(told["count"] if number >= 0 else 1)
            everybody: list[Any] = [None] * team.workers
            dist.all_gather_object(everybody, mine)
            found[name] = everybody
        if number >= 0:
            rounds.append(found)
        if team.leads:
            print(f"round {number + 1} of {told['rounds']}", file=sys.stderr, flush=True)
    return rounds


def profile(told: dict[str, Any], team: Team) -> dict[str, Any]:
    """Measure every layer group, and the stages of pipelines, in both processes at once; means of the two medians."""
    case, places, pieces = told["case"], told["places"], told["microbatches"]
    recipe = recipe_of(case, "lct", places)
    facts = facts_of(case)
    network = build_network(recipe, facts).train()
    critics = [*network.critics, None]
    batch = minibatch(case)
    found: list[Any] = [None] * network.num_groups
    entries: list[torch.Tensor] = [batch.x]
    with torch.no_grad():
        for group in network.groups[:-1]:
            entries.append(group(entries[-1]))
    order = range(network.num_groups)
    for k in order if team.worker == 0 else reversed(order):
        one = GroupInTraining(k + 1, network.groups[k], critics[k], recipe, facts.task, Clock(1000, 1000))
        one.start_epoch()
        x, L = entries[k], None
        taken = []
        for step in range(told["repeats"] + 1):
            marks = [time.monotonic()]
            h = one.forward(x, step)
            marks.append(time.monotonic())
            L = one.judge(batch.y, step)
            marks.append(time.monotonic())
            one.descend(step)
            marks.append(time.monotonic())
            one.learn(L, step)
            marks.append(time.monotonic())
            taken.append([after - before for before, after in pairwise(marks)])
        names = ("forward", "judge", "descend", "learn")
        lct = dict(zip(names, (statistics.median(times) for times in zip(*taken[1:], strict=True)), strict=True))
        lct["bytes"] = h.numel() * h.element_size()
        found[k] = {"lct": lct, "stages": [_stage(network, k, x, batch.y, m, told["repeats"]) for m in pieces]}
    everybody: list[Any] = [None] * team.size
    dist.all_gather_object(everybody, found)
    return {"groups": [_mean([mine[k] for mine in everybody]) for k in order], "wire": _wire(team)}


def _stage(network: Any, k: int, x: torch.Tensor, y: torch.Tensor, parts: int, repeats: int) -> dict[str, float]:
    """Seconds of forward and backward on one of `parts` microbatches, as a pipeline's stage; and of the step."""
    module, last = network.groups[k], k == network.num_groups - 1
    x, y = x.tensor_split(parts)[0], y.tensor_split(parts)[0]
    optimizer = torch.optim.SGD(module.parameters(), 0.0, 0.9, fused=True)
    task = "classification" if y.dim() == 1 else "language-model"
    taken = []
    for _ in range(repeats + 1):
        entry = x.detach().requires_grad_(k > 0)
        start = time.monotonic()
        h = module(entry)
        result = losses(task, h, y).mean() if last else h
        middle = time.monotonic()
        result.backward(torch.ones_like(result))
        end = time.monotonic()
        optimizer.step()
        taken.append([middle - start, end - middle, time.monotonic() - end])
        optimizer.zero_grad()
    forward, backward, step = (statistics.median(times) for times in zip(*taken[1:], strict=True))
    size = float(h.numel() * h.element_size())
    return {"microbatches": parts, "forward": forward, "backward": backward, "step": step, "bytes": size}


def _mean(found: list[Any]) -> Any:
    if isinstance(found[0], dict):
        return {key: _mean([one[key] for one in found]) for key in found[0]}
    if isinstance(found[0], list):
        return [_mean(list(several)) for several in zip(*found, strict=True)]
    return statistics.mean(found)


def _wire(team: Team) -> dict[str, float]:
    """Measure the link between the two processes: seconds of an empty message, and bytes a second."""
    times = {}
    for numbers in (1, 4_000_000):
        values, taken = torch.zeros(numbers), []
        for _ in range(20):
            dist.barrier()
            start = time.monotonic()
            (dist.send if team.worker == 0 else dist.recv)(values, 1 - team.worker)
            (dist.recv if team.worker == 0 else dist.send)(values, 1 - team.worker)
            taken.append((time.monotonic() - start) / 2)
        times[numbers] = statistics.median(taken)
    return {"latency": times[1], "bandwidth": 16_000_000 / (times[4_000_000] - times[1])}


def memory(told: dict[str, Any], team: Team, before: int) -> list[int]:
    """Return each process's peak resident bytes above its imports, after some minibatches."""
    Variant(told["case"], told["variant"], team, Waiting(team)).turn(told["count"])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    everybody: list[Any] = [grown]
    if team.size > 1:
        everybody = [None] * team.workers
        dist.all_gather_object(everybody, grown)
    return everybody


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    size = int(os.environ["WORLD_SIZE"])
    team = join(size, 1, CPU, told.get("wire", "exact")) if size > 1 else Team(CPU)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with team.together():
        if told["what"] == "memory":
            found: Any = memory(told, team, before)
        else:
            found = {"compare": compare, "profile": profile}[told["what"]](told, team)
        if team.leads:
            Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
