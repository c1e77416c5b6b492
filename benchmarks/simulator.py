"""Predict the period of a pipeline from measured times: the actions of each worker, in order, and its messages.

Every worker runs one program per minibatch: compute, send, receive. `run` simulates all workers together and returns
the time between two minibatches once the pipeline is full.

    local critic training     F  send h  receive L_{i+1} of the previous minibatch  learn  judge  send L  B
    1F1B, GPipe               F and B of microbatches in the schedule's order; receives posted when they are needed
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

MINIBATCHES = 60


@dataclass(frozen=True)
class Wire:
    """A link between two neighbours: seconds per message, bytes per second, and processor seconds per byte.

    The sender spends the processor seconds, and so does a receiver that computes meanwhile.
    """

    latency: float
    bandwidth: float
    processor: float = 0.0


@dataclass(frozen=True)
class Compute:
    seconds: float


@dataclass(frozen=True)
class Send:
    """Send to the worker `by` ranks further; `wait` until it arrives, or else until the one two before has."""

    by: int
    tag: str
    bytes: float
    wait: bool = False


@dataclass(frozen=True)
class Receive:
    """Receive from the worker `by` ranks further: the message of this minibatch, or of `before` minibatches ago.

    Without `ahead` it is posted only when it is needed, and the message starts no earlier: gloo delays it.
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
    """Return the period: mean seconds between two minibatches in the second half of a run."""
    W = len(programs)
    clock, progress, end_times = [0.0] * W, [(0, 0)] * W, [[0.0] for _ in range(W)]
    # By (from, to, tag, minibatch): time of arrival, seconds on the wire, seconds of the processor.
    messages: dict[tuple[int, int, str, int], tuple[float, float, float]] = {}
    arrivals: dict[tuple[int, int], list[float]] = defaultdict(list)  # of (from, to), in order
    progressed = True
    while progressed:
        progressed = False
        for w in range(W):
            while progress[w][0] < minibatches:
                k, position = progress[w]
                if position == len(programs[w]):
                    progress[w] = (k + 1, 0)
                    end_times[w].append(clock[w])
                    continue
                action = programs[w][position]
                if isinstance(action, Compute):
                    clock[w] += action.seconds
                elif isinstance(action, Send):
                    earlier = arrivals[w, w + action.by]
                    if len(earlier) >= 2 and not action.wait:
                        clock[w] = max(clock[w], earlier[-2])
                    free = earlier[-1] if earlier else 0.0
                    duration = wire.latency + action.bytes / wire.bandwidth
                    earlier.append(max(clock[w], free) + duration)
                    messages[w, w + action.by, action.tag, k] = earlier[-1], duration, wire.processor * action.bytes
                    clock[w] = earlier[-1] if action.wait else clock[w] + wire.processor * action.bytes
                elif k >= action.before:
                    key = (w + action.by, w, action.tag, k - action.before)
                    if key not in messages:
                        break
                    arrival, duration, work = messages[key]
                    clock[w] = max(clock[w] + work, arrival) if action.ahead else max(clock[w] + duration, arrival)
                progress[w] = (k, position + 1)
                progressed = True
    if any(k < minibatches for k, _ in progress):
        raise RuntimeError("The programs wait for each other; every Receive needs its Send.")
    half = minibatches // 2
    return max((times[-1] - times[half]) / (minibatches - half) for times in end_times)


def local_critics(workers: Sequence[Sequence[Group]]) -> list[Program]:
    """Return the programs of local critic training; `workers` has the groups of each worker."""
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
    """Return the programs of torch's GPipe and 1F1B."""
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
