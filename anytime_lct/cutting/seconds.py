"""What layer groups take in seconds: whole training steps on copies, measured here and now, critics included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anytime_lct.counting import in_turn
from anytime_lct.cutting.costs import MakeCritic, Table, measuring, on_device, run_through
from anytime_lct.cutting.groups import segments
from anytime_lct.cutting.trace import Trace

REPEATS = 5  # of a measured segment


@dataclass(frozen=True)
class Others:
    """Processes that measure the same at the same time, as they will train: what they contend for is in the seconds.

    `average` takes the mean of integers over all of them; each begins with another group, by its `rank`, from 0.
    """

    rank: int = 0
    average: Callable[[list[int]], list[int]] = list


NOBODY = Others()


def of_parts(parts: Sequence[nn.Module], critic: MakeCritic, example: Tensor, others: Others = NOBODY) -> Table:
    """Return the table of microseconds of a training step on a batch like `example`, the mean over all `others`.

    Medians over whole steps, all forward, then all backward, as memory comes and goes: a segment measured by itself
    would pay for fresh memory each time, which training does not.
    """
    S = len(parts)
    with measuring(example, without_values=False):
        copies = [on_device(part, example.device) for part in parts]
        table = _table(*run_through(copies, _values_like(example), critic, in_turn(parts, example)[0]))
    agreed = others.average([cost for row in table for cost in row])
    return [agreed[k * (S + 1) : (k + 1) * (S + 1)] for k in range(S)]


def _table(parts: Sequence[nn.Module], behind: Sequence[nn.Module | None], entries: Sequence[Tensor]) -> Table:
    S = len(parts)
    weights = [[p for p in part.parameters() if p.requires_grad] for part in parts]
    optimizers = [torch.optim.SGD(own, lr=0.0, momentum=0.9, fused=True) if own else None for own in weights]
    taken = [_step(parts, behind, entries[0], optimizers) for _ in range(REPEATS + 1)][1:]
    own, end = (
        [round(1e6 * statistics.median(t)) for t in zip(*side, strict=True)] for side in zip(*taken, strict=True)
    )
    return [[sum(own[a:b]) + end[b - 1] if a < b else 0 for b in range(S + 1)] for a in range(S)]


def corrected(
    trace: Trace, cuts: Sequence[int], table: Table, example: Tensor, critic: MakeCritic, others: Others = NOBODY
) -> tuple[list[int], Table]:
    """Run the groups between `cuts` (numbers of candidates) as they will be trained, each by itself.

    Returns the microseconds of each, and the table with each group's segments scaled to what the group took:
    alone, memory comes and goes otherwise than in a whole step.
    """

    def of_cut(number: int, hidden: Tensor, follows: int) -> nn.Module | None:
        return critic(cuts[number] - 1, hidden, follows)

    parts = segments(trace, [trace.candidates[k - 1].position for k in cuts])
    with torch.random.fork_rng(devices=[]):
        copies = [on_device(part, example.device) for part in parts]
        groups, behind, entries = run_through(copies, _values_like(example), of_cut, in_turn(parts, example)[0])
    S, N, bounds, took = len(table), len(groups), [0, *cuts, len(table)], [0] * len(groups)
    for k in sorted(range(N), key=lambda k: (k - others.rank) % N):
        weights = [p for p in groups[k].parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, fused=True) if weights else None
        times = [_step([groups[k]], [behind[k]], entries[k], [optimizer]) for _ in range(REPEATS)][1:]
        took[k] = round(1e6 * min(own[0] + end[0] for own, end in times))  # whatever disturbs only adds
    took = others.average(took)
    ends = [row[S] for row in table] + [0]
    own = [float(ends[k] - ends[k + 1]) for k in range(S)]
    behind_each = [table[k][k + 1] - own[k] for k in range(S)]
    for time_, a, b in zip(took, bounds[:-1], bounds[1:], strict=True):
        factor = time_ / max(1, table[a][b])
        own[a:b] = [factor * cost for cost in own[a:b]]
    scaled = [[round(sum(own[a:b]) + behind_each[b - 1]) if a < b else 0 for b in range(S + 1)] for a in range(S)]
    return took, scaled


def _step(
    parts: Sequence[nn.Module],
    behind: Sequence[nn.Module | None],
    x: Tensor,
    optimizers: Sequence[torch.optim.Optimizer | None],
) -> tuple[list[float], list[float]]:
    """Run one training step; return the seconds of every segment, and of the critic behind it."""
    watch, own, end, passed = _Laps(x.device), [], [], []
    for part, critic in zip(parts, behind, strict=True):
        entry = x.detach().requires_grad_(bool(passed) and x.is_floating_point())
        y = part(entry)
        own.append(watch.lap())
        if critic is not None:
            Z = critic(y.detach().requires_grad_())
            Z.backward(torch.ones_like(Z), retain_graph=True)
            Z.backward(torch.ones_like(Z), inputs=[p for p in critic.parameters() if p.requires_grad])
        end.append(watch.lap())
        passed.append(y)
        x = y
    for k in reversed(range(len(parts))):
        y = passed.pop()
        if y.requires_grad:
            y.backward(torch.ones_like(y))
        del y
        if (optimizer := optimizers[k]) is not None:
            optimizer.step()
            optimizer.zero_grad()
        own[k] += watch.lap()
    return own, end


class _Laps:
    """Seconds between laps, with what an accelerator still works on waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


def _values_like(x: Tensor) -> Tensor:
    return torch.randn_like(x) if x.is_floating_point() else x
