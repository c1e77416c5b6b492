"""Seconds of layer groups: whole training steps on copies, measured now on this machine, critics included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anytime_lct.counting import count_in_turn
from anytime_lct.cutting.costs import MakeCritic, Table, measuring, on_device, probe
from anytime_lct.cutting.groups import segments
from anytime_lct.cutting.trace import Trace

REPEATS = 5  # of a measured segment


@dataclass(frozen=True)
class Peers:
    """Processes that measure the same groups at the same time, so that contention counts as it will in training.

    `average` returns the means of integers over all of them; each begins with another group, by its `rank`, from 0.
    """

    rank: int = 0
    average: Callable[[list[int]], list[int]] = list


NO_PEERS = Peers()


def of_parts(parts: Sequence[nn.Module], critic: MakeCritic, example: Tensor, peers: Peers = NO_PEERS) -> Table:
    """Return the table of microseconds of a training step on a batch like `example`, the mean over all `peers`.

    Medians over whole steps, all forward, then all backward, as in training: a segment measured by itself would
    allocate new memory each time.
    """
    S = len(parts)
    with measuring(example, without_values=False):
        copies = [on_device(part, example.device) for part in parts]
        table = _table(*probe(copies, _values_like(example), critic, count_in_turn(parts, example)[0]))
    means = peers.average([cost for row in table for cost in row])
    return [means[k * (S + 1) : (k + 1) * (S + 1)] for k in range(S)]


def _table(parts: Sequence[nn.Module], critics: Sequence[nn.Module | None], inputs: Sequence[Tensor]) -> Table:
    S = len(parts)
    weights = [[p for p in part.parameters() if p.requires_grad] for part in parts]
    optimizers = [torch.optim.SGD(own, lr=0.0, momentum=0.9, fused=True) if own else None for own in weights]
    steps = [_step(parts, critics, inputs[0], optimizers) for _ in range(REPEATS + 1)][1:]
    own, end = (
        [round(1e6 * statistics.median(times)) for times in zip(*rows, strict=True)]
        for rows in zip(*steps, strict=True)
    )
    return [[sum(own[a:b]) + end[b - 1] if a < b else 0 for b in range(S + 1)] for a in range(S)]


def correct(
    trace: Trace, cuts: Sequence[int], table: Table, example: Tensor, critic: MakeCritic, peers: Peers = NO_PEERS
) -> tuple[list[int], Table]:
    """Run the groups between `cuts` (numbers of candidates) as they will be trained, each by itself.

    Returns the microseconds of each, and the table with each group's segments scaled to the group's time: a group by
    itself allocates memory differently than a whole step does.
    """

    def of_cut(index: int, hidden: Tensor, cost_behind: int) -> nn.Module | None:
        return critic(cuts[index] - 1, hidden, cost_behind)

    parts = segments(trace, [trace.candidates[k - 1].position for k in cuts])
    with torch.random.fork_rng(devices=[]):
        copies = [on_device(part, example.device) for part in parts]
        groups, critics, inputs = probe(copies, _values_like(example), of_cut, count_in_turn(parts, example)[0])
    S, N, bounds, microseconds = len(table), len(groups), [0, *cuts, len(table)], [0] * len(groups)
    for k in sorted(range(N), key=lambda k: (k - peers.rank) % N):
        weights = [p for p in groups[k].parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, fused=True) if weights else None
        steps = [_step([groups[k]], [critics[k]], inputs[k], [optimizer]) for _ in range(REPEATS)][1:]
        microseconds[k] = round(1e6 * min(own[0] + end[0] for own, end in steps))  # disturbances only add time
    microseconds = peers.average(microseconds)
    to_the_end = [row[S] for row in table] + [0]
    own = [float(to_the_end[k] - to_the_end[k + 1]) for k in range(S)]
    of_critics = [table[k][k + 1] - own[k] for k in range(S)]
    for time_, a, b in zip(microseconds, bounds[:-1], bounds[1:], strict=True):
        factor = time_ / max(1, table[a][b])
        own[a:b] = [factor * cost for cost in own[a:b]]
    scaled = [[round(sum(own[a:b]) + of_critics[b - 1]) if a < b else 0 for b in range(S + 1)] for a in range(S)]
    return microseconds, scaled


def _step(
    parts: Sequence[nn.Module],
    critics: Sequence[nn.Module | None],
    x: Tensor,
    optimizers: Sequence[torch.optim.Optimizer | None],
) -> tuple[list[float], list[float]]:
    """Run one training step; return the seconds of every segment, and of the critic behind it."""
    laps, own, end, outputs = _Laps(x.device), [], [], []
    for part, critic in zip(parts, critics, strict=True):
        y = part(x.detach().requires_grad_(bool(outputs) and x.is_floating_point()))
        own.append(laps.next())
        if critic is not None:
            Z = critic(y.detach().requires_grad_())
            Z.backward(torch.ones_like(Z), retain_graph=True)
            Z.backward(torch.ones_like(Z), inputs=[p for p in critic.parameters() if p.requires_grad])
        end.append(laps.next())
        outputs.append(y)
        x = y
    for k in reversed(range(len(parts))):
        y = outputs.pop()
        if y.requires_grad:
            y.backward(torch.ones_like(y))
        del y
        if (optimizer := optimizers[k]) is not None:
            optimizer.step()
            optimizer.zero_grad()
        own[k] += laps.next()
    return own, end


class _Laps:
    """Seconds between calls of `next`, which waits for an accelerator's queued work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def next(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


def _values_like(x: Tensor) -> Tensor:
    return torch.randn_like(x) if x.is_floating_point() else x
