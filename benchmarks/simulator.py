"""Predict the period of a pipeline from measured times: what each worker does, in order, and how messages travel.

Every worker runs a program a minibatch: compute for so long, send, receive. `run` plays the programs of all workers
against each other and returns the time between two minibatches once the pipeline is full.

    local critic training     F  send h  receive L_{i+1} of the minibatch before  learn  judge  send L  B
    1F1B, GPipe               F and B of microbatches in the schedule's order; receives posted when they are needed
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

MINIBATCHES = 60


@dataclass(frozen=True)
class Wire:
    """A link between two neighbours: seconds a message, bytes a second, and what a byte takes of the processor.

    The latter is taken from the work of the sender, and of a receiver that works on meanwhile.
    """

    latency: float
    bandwidth: float
    processor: float = 0.0


@dataclass(frozen=True)
class Compute:
    seconds: float


@dataclass(frozen=True)
class Send:
    """To the worker `by` places further; waits until it has arrived, or else until the one two before has."""

    by: int
    tag: str
    bytes: float
    wait: bool = False


@dataclass(frozen=True)
class Receive:
    """From the worker `by` places further: the message of this minibatch, or of `before` minibatches ago.

    Without `ahead` it is posted only when it is needed, and the message starts no earlier: gloo holds it back.
    """

    by: int
    tag: str
    before: int = 0
    ahead: bool = True


Program = Sequence[Compute | Send | Receive]


@dataclass(frozen=True)
class Group:
    """Measured seconds of a layer group with its critic, on one minibatch, and the bytes of its output."""

    forward: float
    judge: float
    descend: float
    learn: float
    bytes: float


@dataclass(frozen=True)
class Stage:
    """Measured seconds of a worker's stage on one microbatch, of its optimizer's step, and the bytes of its output."""

    forward: float
    backward: float
    step: float
    bytes: float


def run(programs: Sequence[Program], wire: Wire, minibatches: int = MINIBATCHES) -> float:
    """Return the period: seconds between two minibatches, over the second half of a run."""
    W = len(programs)
    clock, at, ended = [0.0] * W, [(0, 0)] * W, [[0.0] for _ in range(W)]
    arrival: dict[tuple[int, int, str, int], tuple[float, float, float]] = {}  # of (from, to, tag, minibatch)
    sent: dict[tuple[int, int], list[float]] = defaultdict(list)  # arrivals of each direction, in order
    moved = True
    while moved:
        moved = False
        for w in range(W):
            while at[w][0] < minibatches:
                k, position = at[w]
                if position == len(programs[w]):
                    at[w] = (k + 1, 0)
                    ended[w].append(clock[w])
                    continue
                action = programs[w][position]
                if isinstance(action, Compute):
                    clock[w] += action.seconds
                elif isinstance(action, Send):
                    flight = sent[w, w + action.by]
                    if len(flight) >= 2 and not action.wait:
                        clock[w] = max(clock[w], flight[-2])
                    free = flight[-1] if flight else 0.0
                    takes = wire.latency + action.bytes / wire.bandwidth
                    flight.append(max(clock[w], free) + takes)
                    arrival[w, w + action.by, action.tag, k] = flight[-1], takes, wire.processor * action.bytes
                    clock[w] = flight[-1] if action.wait else clock[w] + wire.processor * action.bytes
                elif k >= action.before:
                    key = (w + action.by, w, action.tag, k - action.before)
                    if key not in arrival:
                        break
                    there, takes, work = arrival[key]
                    clock[w] = max(clock[w] + work, there) if action.ahead else max(clock[w] + takes, there)
                at[w] = (k, position + 1)
                moved = True
    if any(k < minibatches for k, _ in at):
        raise RuntimeError("The programs wait for each other; every Receive needs its Send.")
    half = minibatches // 2
    return max((times[-1] - times[half]) / (minibatches - half) for times in ended)


def local_critics(workers: Sequence[Sequence[Group]]) -> list[Program]:
    """Programs of local critic training; `workers` holds the groups of each."""
    W, programs = len(workers), []
    for w, groups in enumerate(workers):
        program: list[Compute | Send | Receive] = [Receive(-1, "h")] if w > 0 else []
        for k, group in enumerate(groups):
            program.append(Compute(group.forward))
            if k == len(groups) - 1 and w < W - 1:
                program += [Send(1, "h", group.bytes), Receive(1, "L", before=1), Compute(group.learn)]
            program.append(Compute(group.judge))
            if k == 0 and w > 0:
                program.append(Send(-1, "L", 1024))
            program.append(Compute(group.descend))
            if k > 0:
                program.append(Compute(groups[k - 1].learn))
        programs.append(program)
    return programs


def pipelined(stages: Sequence[Stage], microbatches: int, schedule: str) -> list[Program]:
    """Programs of torch's GPipe and 1F1B."""
    W, programs = len(stages), []
    for w, stage in enumerate(stages):
        ahead = microbatches if schedule == "gpipe" else min(microbatches, W - w)
        order = [("F", i) for i in range(ahead)]
        for i in range(microbatches):
            order.append(("B", i))
            if ahead + i < microbatches:
                order.append(("F", ahead + i))
        program: list[Compute | Send | Receive] = []
        for kind, i in order:
            if kind == "F":
                program += [Receive(-1, f"h{i}", ahead=False)] if w > 0 else []
                program.append(Compute(stage.forward))
                program += [Send(1, f"h{i}", stage.bytes)] if w < W - 1 else []
            else:
                program += [Receive(1, f"d{i}", ahead=False)] if w < W - 1 else []
                program.append(Compute(stage.backward))
                program += [Send(-1, f"d{i}", stages[w - 1].bytes)] if w > 0 else []
        programs.append([*program, Compute(stage.step)])
    return programs
