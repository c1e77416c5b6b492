"""One of the processes that benchmarks/workers.py starts: runs all variants in alternation and measures them.

All variants of a comparison run in the same two processes, one thread each, in turns with a barrier between them. The
period of a turn is the time between two minibatches of a full pipeline, on the worker where it is longest.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from anytime_lct.critics.places import choose_places
from anytime_lct.cutting.seconds import Peers
from anytime_lct.models import networks as models
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import CutRecipe, Recipe
from anytime_lct.run_folder.build import build_network, example_input
from anytime_lct.task import Facts, losses
from anytime_lct.training.learner import Learner
from anytime_lct.training.memory import keep_freed_memory
from anytime_lct.training.methods.group import GroupInTraining
from anytime_lct.training.methods.table import row_of
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.links import Link
from anytime_lct.training.processes.team import Team, join_team
from anytime_lct.training.schedule import Clock

CPU = torch.device("cpu")
FILL = 3  # minibatches until every worker has one, and one more
DRAIN = 1  # the last minibatch, whose end waits for the other workers
IMAGES = Facts("random", "classification", (3, 32, 32), 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
SMALL = {
    "resnet50": {"name": "resnet", "depth": 8, "width": 16},
    "lstm": {"name": "lstm", "layers": 2, "units": 16, "embedding": 8},
}
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
            "critic": {"kind": "slim"},
            "rule": {"critic_loss": "paper"},
            "groups": {"name": "adam", "lr": 2.7e-3} if text else {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4},
            "critics": {"name": "adam", "lr": 2.7e-3 if text else 1e-4, "weight_decay": 0.0},
            "train": {"epochs": 1, "method": method, "clip_norm": 0.0, **train},
        }
    )


def minibatch(case: dict[str, Any], part: tuple[int, int] = (0, 1)) -> Minibatch:
    facts, rows = facts_of(case), case["batch"]
    generator = torch.Generator().manual_seed(0)
    if facts.task == "classification":
        x = torch.randn(rows, *facts.input_shape, generator=generator)
        y = torch.randint(0, facts.outputs, (rows,), generator=generator)
    else:
        x, y = (torch.randint(0, facts.outputs, (rows, case["length"]), generator=generator) for _ in range(2))
    k, n = part
    x, y = x.tensor_split(n)[k], y.tensor_split(n)[k]
    return Minibatch(x, y, 0, rows=len(y), joint=rows)


class Waiting:
    """Seconds that a worker spends in its links: sending, and waiting for messages."""

    def __init__(self, team: Team) -> None:
        self.seconds = 0.0
        for edge in (team.previous, team.next):
            if edge is not None:
                for link in (edge.down, edge.up):
                    self._time(link)

    def _time(self, link: Link) -> None:
        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def call_timed(*arguments: Any) -> Any:
                start = time.monotonic()
                try:
                    return call(*arguments)
                finally:
                    self.seconds += time.monotonic() - start

            return call_timed

        link.send, link.receive = timed(link.send), timed(link.receive)  # type: ignore[method-assign]


class Variant:
    """A method in this process, or nothing if the process takes no part; `turn` runs minibatches and times them."""

    def __init__(self, case: dict[str, Any], spec: dict[str, Any], team: Team, waiting: Waiting) -> None:
        self.case, self.waiting, self.steps = case, waiting, 0
        method = spec["method"]
        clock = Clock(1_000_000, 1_000_000)
        self.team = (
            Team(CPU, 0, 1, team.worker, team.workers, replica_group=dist.group.WORLD) if spec.get("ddp") else team
        )
        self.alone = method == "bp" and not spec.get("ddp")
        if self.alone:
            self.team = Team(CPU)
        self.method: Any = None
        if self.alone and team.worker > 0:
            return
        recipe = recipe_of(case, method, spec.get("places", []), **spec.get("train", {}))
        network = build_network(recipe, facts_of(case), whole=not row_of(method).cuts).train()
        self.batch = minibatch(case, part=(self.team.replica, self.team.replicas))
        if recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)
            self.batch = replace(self.batch, x=self.batch.x.contiguous(memory_format=torch.channels_last))
        self.team.bounds = tuple(spec.get("bounds", (0, 1)))
        self.method = row_of(method).make(network, recipe, facts_of(case).task, clock, self.team)
        self.method.start_epoch()

    def turn(self, count: int) -> dict[str, Any]:
        """Run minibatches; return when the last count + 1 of them ended, and the seconds in links until then."""
        if self.method is None:
            return {"ends": [], "waiting": []}
        ends, waiting = [], []
        for batch in self._minibatches(FILL + count + DRAIN):
            self.method.step(batch)
            ends.append(time.monotonic())
            waiting.append(self.waiting.seconds)
        self.steps += FILL + count + DRAIN
        full = slice(FILL - 1, -DRAIN)
        return {"ends": ends[full], "waiting": waiting[full]}

    def _minibatches(self, count: int) -> Iterator[Minibatch]:
        if self.team.previous is not None:
            yield from self.team.previous.minibatches(self.steps)
            return
        for k in range(count):
            yield replace(self.batch, step=self.steps + k, last=k == count - 1)


def compare(job: dict[str, Any], team: Team) -> list[dict[str, Any]]:
    """Return, for each round and variant, the measurements of every process."""
    waiting = Waiting(team)
    variants = {name: Variant(job["case"], spec, team, waiting) for name, spec in job["variants"].items()}
    rounds = []
    for number in range(-1, job["rounds"]):  # the first one warms up
        order = list(variants) if number % 2 else list(reversed(variants))
        turns = {}
        for name in order:
            turns[name] = _turn(variants[name], job["count"] if number >= 0 else 1)
        if number >= 0:
            rounds.append(turns)
        if team.leads:
            print(f"round {number + 1} of {job['rounds']}", file=sys.stderr, flush=True)
    return rounds


class Profile:
    """Seconds of every layer group and pipeline stage alone, measured by both processes at the same time."""

    def __init__(self, job: dict[str, Any], team: Team) -> None:
        case = job["case"]
        recipe, facts = recipe_of(case, "lct", job["places"]), facts_of(case)
        network = build_network(recipe, facts).train()
        self.job, self.team, self.groups, self.batch = job, team, list(network.groups), minibatch(case)
        self.task = facts.task
        critics = [*network.critics, None]
        clock = Clock(1_000_000, 1_000_000)
        self.entries: list[torch.Tensor] = [self.batch.x]
        self.training, self.learners = [], []
        for k, group in enumerate(self.groups):
            self.training.append(GroupInTraining(k + 1, group, critics[k], recipe, facts.task, clock))
            self.training[-1].start_epoch()
            self.learners.append(Learner(group, recipe.groups, recipe.groups_schedule, clock))
            with torch.no_grad():
                self.entries.append(group(self.entries[-1]))

    def measure(self) -> dict[str, Any]:
        """Return each group's seconds, means of both processes' medians, and the cost of the link."""
        order = range(len(self.groups))
        seconds: list[Any] = [None] * len(self.groups)
        dist.barrier()
        for k in order if self.team.worker == 0 else reversed(order):
            microbatches = self.job["microbatches"]
            seconds[k] = {"lct": self._group(k), "stages": [self._stage(k, m) for m in microbatches]}
        all_ranks: list[Any] = [None] * self.team.size
        dist.all_gather_object(all_ranks, seconds)
        return {"groups": [_mean([of_rank[k] for of_rank in all_ranks]) for k in order], "wire": _wire(self.team)}

    def _group(self, k: int) -> dict[str, float]:
        training, x, L = self.training[k], self.entries[k], torch.zeros(())
        h = self.entries[k + 1]
        step_seconds = []
        for step in range(self.job["repeats"] + 1):
            marks = [time.monotonic()]
            h = training.forward(x, step)
            marks.append(time.monotonic())
            L = training.judge(self.batch.y, step)
            marks.append(time.monotonic())
            training.descend(step)
            marks.append(time.monotonic())
            training.learn(L, step)
            marks.append(time.monotonic())
            step_seconds.append([after - before for before, after in pairwise(marks)])
        names = ("forward", "judge", "descend", "learn")
        seconds = dict(zip(names, _medians(step_seconds[1:]), strict=True))
        return {**seconds, "bytes": float(h.numel() * h.element_size())}

    def _stage(self, k: int, parts: int) -> dict[str, float]:
        """Return a pipeline stage's seconds: forward and backward on one of `parts` microbatches, and the step."""
        module, last = self.groups[k], k == len(self.groups) - 1
        x, y = (tensor.tensor_split(parts)[0] for tensor in (self.entries[k], self.batch.y))
        h, step_seconds = self.entries[k + 1], []
        optimizer = self.learners[k]
        for step in range(self.job["repeats"] + 1):
            entry = x.detach().requires_grad_() if k > 0 else x
            start = time.monotonic()
            h = module(entry)
            result = losses(self.task, h, y).mean() if last else h
            middle = time.monotonic()
            result.backward(torch.ones_like(result))
            end = time.monotonic()
            optimizer.step(step)
            step_seconds.append([middle - start, end - middle, time.monotonic() - end])
            optimizer.zero_grad()
        forward, backward, update = _medians(step_seconds[1:])
        size = float(h.numel() * h.element_size())
        return {"microbatches": parts, "forward": forward, "backward": backward, "step": update, "bytes": size}


def places(job: dict[str, Any], team: Team) -> list[str]:
    """Choose the cut of least seconds as `train --set cut.by=measured` does, in all processes at once."""
    case, facts = job["case"], facts_of(job["case"])
    options = {key: value for key, value in case["model"].items() if key != "name"}
    torch.manual_seed(0)
    model = models.build(case["model"]["name"], facts.input_shape, facts.outputs, **options)
    example = example_input(facts, case["batch"])
    peers = Peers(team.rank, team.mean)
    groups = job["groups"]
    return list(choose_places(model, example, CutRecipe(groups=groups, by="measured"), task=facts.task, peers=peers))


def profile(job: dict[str, Any], team: Team) -> dict[str, Any]:
    return Profile(job, team).measure()


def simulate(job: dict[str, Any], team: Team) -> list[dict[str, Any]]:
    """Alternate the measured period and the profile that predicts it, so that both see the same machine."""
    waiting = Waiting(team)
    variants = {name: Variant(job["case"], spec, team, waiting) for name, spec in job["variants"].items()}
    profiler, rounds = Profile(job, team), []
    for number in range(-1, job["rounds"]):  # the first one warms up
        real = {name: _turn(variant, job["count"] if number >= 0 else 1) for name, variant in variants.items()}
        measured = {"real": real, "profile": profiler.measure()}
        if number >= 0:
            rounds.append(measured)
    return rounds


def _turn(variant: Variant, count: int) -> list[dict[str, Any]]:
    """Run a variant in all processes; return the measurements of each."""
    dist.barrier()
    all_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_ranks, variant.turn(count))
    return all_ranks


def _medians(rounds: list[list[float]]) -> list[float]:
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [_mean(list(column)) for column in zip(*values, strict=True)]
    return statistics.mean(values)


def _wire(team: Team) -> dict[str, float]:
    """Measure the link between two processes: seconds of an empty message, bytes per second, work per byte."""
    seconds, work = {}, {}
    for count in (1, 4_000_000):
        values, rounds = torch.zeros(count), []
        for _ in range(20):
            dist.barrier()
            start, before = time.monotonic(), time.process_time()
            (dist.send if team.worker == 0 else dist.recv)(values, 1 - team.worker)
            (dist.recv if team.worker == 0 else dist.send)(values, 1 - team.worker)
            rounds.append([(time.monotonic() - start) / 2, (time.process_time() - before) / 2])
        seconds[count], work[count] = _medians(rounds)
    size = 4 * 4_000_000
    extra = {"seconds": seconds[4_000_000] - seconds[1], "work": work[4_000_000] - work[1]}
    return {"latency": seconds[1], "bandwidth": size / extra["seconds"], "processor": max(0.0, extra["work"] / size)}


def memory(job: dict[str, Any], team: Team) -> list[dict[str, int]]:
    """Return each process's peak bytes while it trains: resident, and of torch's allocator.

    They count weights, gradients, optimizers, activations, buffers of links and workspaces, but not code, which small
    minibatches load beforehand. Resident memory is measured in a first pass, as the profiler itself takes some.
    """
    case, method = job["case"], job["variant"]["method"]
    small = {"model": SMALL[case["model"]["name"]], "batch": 2, "length": 10}
    Variant(small, {"method": method}, Team(CPU), Waiting(Team(CPU))).turn(1)
    before = resident("VmRSS")

    def learn() -> None:
        Variant(case, job["variant"], team, Waiting(team)).turn(job["count"])

    learn()
    peaks = {"resident": resident("VmHWM") - before, "allocated": allocated(learn)}
    all_ranks: list[Any] = [peaks]
    if team.size > 1:
        all_ranks = [None] * team.workers
        dist.all_gather_object(all_ranks, peaks)
    return all_ranks


def resident(field: str) -> int:
    """Return bytes of this process: VmRSS, resident now, or VmHWM, the peak since its start.

    The peak of getrusage includes the one of the parent process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def allocated(call: Callable[[], None]) -> int:
    """Return the peak bytes of torch's allocator during a call, minus those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recording:
        call()
    assert recording.profiler is not None
    events = [e for e in recording.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


JOBS: dict[str, Callable[[dict[str, Any], Team], Any]] = {
    "compare": compare, "profile": profile, "simulate": simulate, "places": places, "memory": memory,
}  # fmt: skip


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    keep_freed_memory()
    size = int(os.environ["WORLD_SIZE"])
    team = join_team(size, 1, CPU, job.get("wire", "exact")) if size > 1 else Team(CPU)
    with team.together():
        result = JOBS[job["what"]](job, team)
        if team.leads:
            Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
