"""What a layer group costs in training: layers, multiply-adds, seconds, or bytes of memory, its critic included.

A table holds at [a][b] what segments a..b-1 cost as one group. Multiply-adds and bytes are counted on meta tensors,
which have shapes and no values; seconds are measured on copies. Nothing of the network itself is run or changed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytime_lct import counting, partition
from anytime_lct.blocks import weighs
from anytime_lct.errors import LCTError, PartitionError
from anytime_lct.partition import Trace

Strategy = Literal["layers", "balanced", "measured", "memory"]
MakeCritic = Callable[[Tensor, int], nn.Module | None]  # what crosses a cut, the multiply-adds of all behind it
Table = list[list[int]]  # [a][b]: cost of the group of segments a..b-1, for a < b
Saved = dict[int, int]  # bytes of the storages that are saved for the backward pass, by identity
REPEATS = 5  # of a measured segment


@dataclass(frozen=True)
class Others:
    """Processes that measure the same at the same time, as they will train: what they contend for is in the seconds.

    `average` takes the mean of integers over all of them; number `place` (from 0) begins with another group than the
    rest.
    """

    place: int = 0
    average: Callable[[list[int]], list[int]] = list


NOBODY = Others()


def of_segments(
    trace: Trace, example: Tensor, by: Strategy, critic: MakeCritic, weight_copies: int = 0, others: Others = NOBODY
) -> Table:
    """Return the table of the segments between a network's candidates, on a batch like `example`.

    `weight_copies` counts every weight so often by memory: weight, gradient and the optimizer's slots, where groups
    do not share a device; then what enters counts once more, as the next minibatch is on its way, and what leaves
    twice, in flight and as gradient. 0 leaves both out. Raises PartitionError where there are no values to measure
    with.
    """
    if by not in get_args(Strategy):
        raise PartitionError(f"Expected cuts by {', '.join(get_args(Strategy))}, got by '{by}'.")
    if by == "layers":
        return _layers(trace)
    parts = partition.segments(trace, [cut.position for cut in trace.candidates])
    table = _table(parts, critic, example, by, weight_copies)
    if by != "measured":
        return table
    size = len(table) + 1
    agreed = others.average([cost for row in table for cost in row])
    return [agreed[k * size : (k + 1) * size] for k in range(len(table))]


def of_workers(
    groups: Sequence[nn.Module], critics: Sequence[nn.Module], example: Tensor, by: Strategy, weight_copies: int = 0
) -> Table:
    """Return the table of what one worker has to do, or hold, that owns groups a..b-1, each with its critic.

    By memory the activations of one group live at a time, but weights always.

    >>> of_workers([nn.Linear(7, 6)], [], torch.zeros(3, 7), "balanced")[0][1]  # forward and the weights' gradient
    252
    """
    N = len(groups)
    behind = iter([*critics, *[None] * (N - len(critics))])
    single = _table(groups, lambda hidden, follows: next(behind), example, "balanced" if by == "layers" else by, 0)
    alone = [single[k][k + 1] for k in range(N)]
    if by != "memory":
        return [[sum(alone[a:b]) for b in range(N + 1)] for a in range(N)]
    held = [weight_copies * _weight_bytes(group) for group in groups]
    for k, critic in enumerate(critics):
        held[k] += weight_copies * _weight_bytes(critic)
    return [[sum(held[a:b]) + max(alone[a:b], default=0) for b in range(N + 1)] for a in range(N)]


def training_cost(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the multiply-adds of a forward and backward pass on `x`, counted by torch on meta tensors.

    `input_grad` False leaves out the gradient by the input, which no layer group computes.

    >>> training_cost(nn.Linear(7, 6), torch.zeros(3, 7))  # 3 x 3 x 7 x 6
    378
    """
    return _count(on_meta(module), meta_like(x), input_grad)


def saved_bytes(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the bytes of distinct activations, not weights, that a forward pass saves for backward.

    Counted as torch's own operators save them; fused kernels (cuDNN's recurrent layers) may save other
    buffers.

    >>> saved_bytes(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.zeros(7, 5))  # 4 bytes x 7 x (5 + 4)
    252
    """
    return sum(_save(on_meta(module), meta_like(x), input_grad)[0].values())


def _layers(trace: Trace) -> Table:
    recording, depth = trace.recording, dict.fromkeys([trace.recording.input], 0)
    for step in recording.steps:  # layers on the longest path: 50 for ResNet-50, whose shortcuts run beside it
        depth[step] = max((depth.get(source, 0) for source in step.all_input_nodes), default=0) + weighs(
            step, recording
        )
    ends = [0, *(depth[trace.crossing[cut.position]] for cut in trace.candidates), depth[recording.result]]
    return [[end - start for end in ends] for start in ends[:-1]]


def _table(parts: Sequence[nn.Module], critic: MakeCritic, example: Tensor, by: Strategy, weight_copies: int) -> Table:
    measure = {"balanced": _flops_table, "measured": _seconds_table, "memory": _bytes_table}[by]
    real = by == "measured"
    with measuring(example, without_values=not real):
        bare = [_copy(part, example.device) if real else on_meta(part) for part in parts]
        made = _run(bare, _values_like(example) if real else meta_like(example), critic)
        table = measure(*made)
    if by == "memory" and weight_copies:
        held = [weight_copies * _weight_bytes(part) for part in parts]
        moved = [0, *(x.untyped_storage().nbytes() for x in made[2][1:]), 0]
        table = [
            [cost + sum(held[a:b]) + moved[a] + 2 * moved[b] if a < b else 0 for b, cost in enumerate(row)]
            for a, row in enumerate(table)
        ]
    return table


@contextmanager
def measuring(example: Tensor, *, without_values: bool) -> Iterator[None]:
    """Leave the random state alone, and say in a sentence where a network cannot be measured."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except LCTError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PartitionError(
            f"The network cannot be measured on a batch of shape {tuple(example.shape)}"
            f"{' without values' if without_values else ''} ({reason}); cut by layers, or name the places."
        ) from error


def _run(
    parts: list[nn.Module], x: Tensor, critic: MakeCritic
) -> tuple[list[nn.Module], list[nn.Module | None], list[Tensor]]:
    """Return the segments, the critic behind each (the last has None), and what enters each."""
    entries, behind, flops = [x], [], []
    for part in parts:
        cost, hidden = counting.answering(part, entries[-1])
        flops.append(cost)
        entries.append(hidden)
    for number, hidden in enumerate(entries[1:-1], start=1):
        with torch.device(hidden.device):
            made = critic(hidden, sum(flops[number:]))
        if made is not None:
            made = on_meta(made) if hidden.is_meta else _copy(made, hidden.device)
        behind.append(made)
    return parts, [*behind, None], entries[:-1]


def _seconds_table(parts: Sequence[nn.Module], behind: Sequence[nn.Module | None], entries: Sequence[Tensor]) -> Table:
    """Microseconds of every group, medians over whole steps: all forward, then all backward, as memory comes and goes.

    A segment measured by itself would pay for fresh memory each time, which training does not.
    """
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
    parts = partition.segments(trace, [trace.candidates[k - 1].position for k in cuts])
    with torch.random.fork_rng(devices=[]):
        groups, behind, entries = _run([_copy(part, example.device) for part in parts], _values_like(example), critic)
    S, N, bounds, took = len(table), len(groups), [0, *cuts, len(table)], [0] * len(groups)
    for k in sorted(range(N), key=lambda k: (k - others.place) % N):
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
    watch, own, end, passed = _Watch(x.device), [], [], []
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


class _Watch:
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


def _flops_table(parts: Sequence[nn.Module], behind: Sequence[nn.Module | None], entries: Sequence[Tensor]) -> Table:
    S = len(parts)
    head = [_count(part, x, False) for part, x in zip(parts, entries, strict=True)]  # a group's first segment
    inner = [_count(part, x, True) for part, x in zip(parts, entries, strict=True)]
    end = [0 if c is None else _count(c, x, True) for c, x in zip(behind[:-1], entries[1:], strict=True)] + [0]
    return [[head[a] + sum(inner[a + 1 : b]) + end[b - 1] if a < b else 0 for b in range(S + 1)] for a in range(S)]


def _bytes_table(parts: Sequence[nn.Module], behind: Sequence[nn.Module | None], entries: Sequence[Tensor]) -> Table:
    """Bytes of every group: what its segments and its critic save, what they share counted once."""
    S, head, inner, x = len(parts), [], [], entries[0]
    alive, at_end = [x], []
    for part, critic in zip(parts, behind, strict=True):
        first, y, _ = _save(part, x, False)
        then, hidden, kept = _save(part, x, True)
        if _storage(y) in first:  # the same tensor at the segment's end, made twice
            first[_storage(hidden)] = first.pop(_storage(y))
        head.append(first)
        inner.append(then)
        x = hidden.detach()
        at_end.append({} if critic is None else _save(critic, x, True)[0])
        alive += [x, y, *kept]
    table = [[0] * (S + 1) for _ in range(S)]
    for a in range(S):
        union: Saved = dict(head[a])
        for b in range(a + 1, S + 1):
            table[a][b] = sum((union | at_end[b - 1]).values())
            union |= inner[b] if b < S else {}
    return table


def _count(module: nn.Module, x: Tensor, input_grad: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        y = module(x.detach().requires_grad_(input_grad and x.is_floating_point()))
        if y.requires_grad:
            y.backward(torch.ones_like(y))
    return counter.get_total_flops() // 2


def _save(module: nn.Module, x: Tensor, input_grad: bool) -> tuple[Saved, Tensor, list[Tensor]]:
    """Return what a forward pass saves, its result, and the tensors that keep identities taken."""
    weights = {_storage(value) for value in [*module.parameters(), *module.buffers()]}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.detach().requires_grad_(input_grad and x.is_floating_point()))
    return {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in kept}, y, kept


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def on_meta(module: nn.Module) -> nn.Module:
    """Copy a module, in train mode, without the values of its weights and buffers."""
    memo: dict[int, object] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        bare = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(module, memo).train()


def meta_like(x: Tensor) -> Tensor:
    """Return a batch like `x`, of at least two samples, which batch norm needs in training."""
    return torch.empty((max(2, x.shape[0]), *x.shape[1:]), dtype=x.dtype, device="meta")


def _copy(module: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(module).to(device).train()


def _values_like(x: Tensor) -> Tensor:
    return torch.randn_like(x) if x.is_floating_point() else x


def _weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
