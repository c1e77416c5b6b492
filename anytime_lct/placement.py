"""Where to cut: the best N groups by layers, by training cost or by memory, exactly.

The candidates cut a network into S segments. A group is a run of segments, so that the best choice of N-1
candidates follows by dynamic programming from a table of what segments a..b-1 cost as one group. Costs are
measured on meta tensors, which have shapes and no values: nothing real is run or changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytime_lct import partition
from anytime_lct.blocks import weighs
from anytime_lct.errors import LCTError, PartitionError
from anytime_lct.partition import Trace

Strategy = Literal["layers", "balanced", "memory"]
MakeCritic = Callable[[Tensor], nn.Module | None]
Table = list[list[int]]  # [a][b]: cost of the group of segments a..b-1, for a < b
Saved = dict[int, int]  # bytes of the storages that are saved for the backward pass, by identity


def place(trace: Trace, example: Tensor, num_groups: int, by: Strategy, critic: MakeCritic) -> tuple[str, ...]:
    """Choose the N-1 places that cut a network into the best N groups.

    layers: as even as possible in depth, layers with weights on the longest path (least sum of squares).
    balanced: the smallest possible maximum of multiply-adds in training, each group's critic included.
    memory: the same for the bytes saved for the backward pass. Ties go to the more even choice, then to the
    earlier cuts. `critic` makes a critic for a (meta) tensor that crosses a cut, or None. Raises
    PartitionError where there are fewer candidates than cuts.

    >>> place(trace(resnet18()), torch.zeros(2, 3, 64, 64), 3, "layers", lambda hidden: None)
    ('layer2.0', 'layer3.1')
    """
    if by not in get_args(Strategy):
        raise PartitionError(f"Expected cuts by {', '.join(get_args(Strategy))}, got by '{by}'.")
    if not 1 <= num_groups <= len(trace.candidates) + 1:
        raise PartitionError(
            f"Expected from 1 to {len(trace.candidates) + 1} layer groups, got {num_groups}; the network "
            f"can be cut after {partition.listed(trace.candidates)}."
        )
    if num_groups == 1:
        return ()
    table = _layers(trace) if by == "layers" else _measured(trace, example, critic, by)
    return tuple(trace.candidates[k - 1].name for k in best_bounds(table, num_groups, minimax=by != "layers"))


def best_bounds(table: Table, num_groups: int, *, minimax: bool) -> tuple[int, ...]:
    """Return the inner bounds 0 < k_1 < .. < S of the groups with the least sum of squared costs.

    With `minimax` only among the choices whose largest cost is the smallest possible. Ties go to the earlier
    bounds.
    """
    ceiling = _smallest_maximum(table, num_groups) if minimax else math.inf
    S = len(table)
    # best[b]: least sum of squares of n groups over segments 0..b-1, and the bounds that reach it
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in range(num_groups):
        choices: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for a, (total, bounds) in best.items():
            for b in range(a + 1, S + 1):
                if table[a][b] <= ceiling:
                    choices.setdefault(b, []).append((total + table[a][b] ** 2, (*bounds, a)))
        best = {b: min(several) for b, several in choices.items()}
    return best[S][1][1:]


def _smallest_maximum(table: Table, num_groups: int) -> float:
    S = len(table)
    row = [0.0] + [math.inf] * S
    for _ in range(num_groups):
        row = [math.inf] + [min(max(row[a], table[a][b]) for a in range(b)) for b in range(1, S + 1)]
    return row[S]


def group_costs(groups: Sequence[nn.Module], critics: Sequence[nn.Module], example: Tensor) -> list[int]:
    """Return the multiply-adds of one training step of every layer group, its critic included.

    >>> group_costs([nn.Linear(7, 6)], [], torch.zeros(3, 7))  # forward and the gradient by the weights
    [252]
    """
    x, costs = _meta_like(example), []
    with torch.random.fork_rng(devices=[]):
        for k, group in enumerate(groups):
            bare = _on_meta(group)
            with torch.no_grad():
                hidden = bare(x)
            critic = training_cost(critics[k], hidden) if k < len(critics) else 0
            costs.append(training_cost(bare, x, input_grad=False) + critic)
            x = hidden
    return costs


def spread(num_groups: int, workers: int, costs: Sequence[int] = ()) -> tuple[int, ...]:
    """Give neighbouring groups to workers so that the largest sum of `costs` (default: equal ones) is the smallest.

    Returns the bounds: worker w owns groups bounds[w]+1 .. bounds[w+1]. Raises PartitionError.

    >>> spread(4, 2, [5, 1, 1, 1])
    (0, 1, 4)
    """
    if not 1 <= workers <= num_groups:
        raise PartitionError(
            f"Expected from 1 to {num_groups} workers for {num_groups} layer groups, got {workers}; lower --workers or "
            f"raise --groups."
        )
    costs = list(costs) or [1] * num_groups
    table = [[sum(costs[a:b]) for b in range(num_groups + 1)] for a in range(num_groups)]
    return (0, *best_bounds(table, workers, minimax=True), num_groups)


def training_cost(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the multiply-adds of a forward and backward pass on `x`, counted by torch on meta tensors.

    `input_grad` False leaves out the gradient by the input, which no layer group computes.

    >>> training_cost(nn.Linear(7, 6), torch.zeros(3, 7))  # 3 x 3 x 7 x 6
    378
    """
    return _count(_on_meta(module), _meta_like(x), input_grad)


def saved_bytes(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the bytes of distinct activations, not weights, that a forward pass saves for backward.

    Counted as torch's own operators save them; fused kernels (cuDNN's recurrent layers) may save other
    buffers.

    >>> saved_bytes(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.zeros(7, 5))  # 4 bytes x 7 x (5 + 4)
    252
    """
    return sum(_save(_on_meta(module), _meta_like(x), input_grad)[0].values())


def _layers(trace: Trace) -> Table:
    recording, depth = trace.recording, dict.fromkeys([trace.recording.input], 0)
    for step in recording.steps:  # layers on the longest path: 50 for ResNet-50, whose shortcuts run beside it
        depth[step] = max((depth.get(source, 0) for source in step.all_input_nodes), default=0) + weighs(
            step, recording
        )
    ends = [0, *(depth[trace.crossing[cut.position]] for cut in trace.candidates), depth[recording.result]]
    return [[end - start for end in ends] for start in ends[:-1]]


def _measured(trace: Trace, example: Tensor, critic: MakeCritic, by: Strategy) -> Table:
    try:
        with torch.random.fork_rng(devices=[]):
            measure = _flops_table if by == "balanced" else _bytes_table
            return measure(*_run(trace, example, critic))
    except LCTError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PartitionError(
            f"The network cannot be measured on a batch of shape {tuple(example.shape)} without values "
            f"({reason}); cut by layers, or name the places."
        ) from error


def _run(
    trace: Trace, example: Tensor, critic: MakeCritic
) -> tuple[list[nn.Module], list[nn.Module | None], list[Tensor]]:
    """Return the segments, the critic behind each (the last has None), and what enters each."""
    parts = [_on_meta(part) for part in partition.segments(trace, [cut.position for cut in trace.candidates])]
    entries, behind = [_meta_like(example)], []
    for part in parts[:-1]:
        with torch.no_grad():
            hidden = part(entries[-1])
        with torch.device("meta"):
            made = critic(hidden)
        behind.append(None if made is None else _on_meta(made))
        entries.append(hidden)
    return parts, [*behind, None], entries


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


def _on_meta(module: nn.Module) -> nn.Module:
    """Copy a module, in train mode, without the values of its weights and buffers."""
    memo: dict[int, object] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        bare = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(module, memo).train()


def _meta_like(x: Tensor) -> Tensor:
    """Return a batch like `x`, of at least two samples, which batch norm needs in training."""
    return torch.empty((max(2, x.shape[0]), *x.shape[1:]), dtype=x.dtype, device="meta")
