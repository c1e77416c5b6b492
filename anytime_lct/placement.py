"""Where to cut: the best N groups by layers, by training cost or by memory, exactly.

The candidates cut a network into S segments. A group is a run of segments, so that the best choice of N-1 candidates
follows from a table of what segments a..b-1 cost as one group, by dynamic programming.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytime_lct import partition
from anytime_lct.errors import PartitionError
from anytime_lct.partition import Trace

Strategy = Literal["layers", "balanced", "memory"]
MakeCritic = Callable[[Tensor], nn.Module]
Table = list[list[float]]  # [a][b]: cost of the group of segments a..b-1

SHORTCUTS = frozenset({"downsample", "shortcut"})  # projections, which the names of residual networks do not count


def place(trace: Trace, example: Tensor, num_groups: int, by: Strategy, critic: MakeCritic) -> tuple[str, ...]:
    """Choose the N-1 places that cut a network into the best N groups.

    layers: as even as possible in layers with weights, the paper's way (least sum of squares). balanced: the smallest
    possible maximum of multiply-adds in training, each group's critic included. memory: the same for the bytes saved
    for the backward pass. Ties go to the more even choice, then to the earlier cuts. `critic` makes a critic for a
    tensor that crosses a cut. Raises PartitionError where there are fewer candidates than cuts.
    """
    if by not in get_args(Strategy):
        raise PartitionError(f"Expected cuts by {', '.join(get_args(Strategy))}, got by '{by}'.")
    if not 1 <= num_groups <= len(trace.candidates) + 1:
        names = ", ".join(cut.name for cut in trace.candidates[: partition.SHOWN_PLACES])
        raise PartitionError(
            f"Expected from 1 to {len(trace.candidates) + 1} layer groups, got {num_groups}; the network can be cut after "
            f"{names or 'no place'}{' ..' if len(trace.candidates) > partition.SHOWN_PLACES else ''}."
        )
    if num_groups == 1:
        return ()
    table = _layers(trace) if by == "layers" else _measure(trace, example, critic, by)
    return tuple(trace.candidates[k - 1].name for k in best_bounds(table, num_groups, minimax=by != "layers"))


def best_bounds(table: Table, num_groups: int, *, minimax: bool) -> tuple[int, ...]:
    """Return the inner bounds 0 < k_1 < .. < S of the groups with the least sum of squared costs.

    With `minimax` only among the choices whose largest cost is the smallest possible.
    """
    ceiling = _smallest_maximum(table, num_groups) if minimax else math.inf
    S = len(table)
    # best[n][b]: least sum of squares of n groups over segments 0..b-1, and the bounds that reach it
    best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}]
    for n in range(1, num_groups + 1):
        row: dict[int, tuple[float, tuple[int, ...]]] = {}
        for b in range(n, S + 1):
            choices = [
                (total + table[a][b] ** 2, (*bounds, a))
                for a, (total, bounds) in best[-1].items()
                if a < b and table[a][b] <= ceiling
            ]
            if choices:
                row[b] = min(choices)
        best.append(row)
    return best[num_groups][S][1][1:]


def _smallest_maximum(table: Table, num_groups: int) -> float:
    S = len(table)
    row = [0.0] + [math.inf] * S
    for _ in range(num_groups):
        row = [math.inf] + [min(max(row[a], table[a][b]) for a in range(b)) for b in range(1, S + 1)]
    return row[S]


def training_cost(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the multiply-adds of a forward and backward pass, counted by torch on meta tensors.

    `input_grad` False leaves out the gradient by the input, as for the first layers of a group.
    """
    module, x = _on_meta(module), _meta_like(x, input_grad)
    return _count(module, x)[0]


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Return the bytes of distinct activations that a forward pass saves for backward, weights and buffers left out."""
    module, x = _on_meta(module), _meta_like(x, True)
    saved: dict[int, Tensor] = {}
    with _saving(saved, module):
        module(x)
    return sum(_bytes(tensor) for tensor in saved.values())


def _layers(trace: Trace) -> Table:
    bounds = [-1, *(cut.position for cut in trace.candidates), len(trace.nodes)]
    weighted = [
        position
        for position, node in enumerate(trace.nodes)
        if partition.weighs(node, trace.attributes) and not SHORTCUTS & set(str(node.target).split("."))
    ]
    counts = [sum(a < p <= b for p in weighted) for a, b in zip(bounds, bounds[1:], strict=False)]
    S = len(counts)
    return [[float(sum(counts[a:b])) for b in range(S + 1)] for a in range(S)]


def _measure(trace: Trace, example: Tensor, critic: MakeCritic, by: Strategy) -> Table:
    """Cost of every possible group, from one pass over the segments on meta tensors: nothing real is run or changed."""
    parts = [_on_meta(part) for part in partition.segments(trace, [cut.position for cut in trace.candidates])]
    x: Tensor = _meta_like(example, False)
    S, costs = len(parts), []
    saved: list[dict[int, Tensor]] = []
    with torch.random.fork_rng(devices=[]):
        for number, part in enumerate(parts):
            entry = x
            head = _count(part, entry.detach())[0]
            inner = _count(part, entry.detach().requires_grad_(entry.is_floating_point()))[0] if number else head
            kept: dict[int, Tensor] = {}
            with _saving(kept, part):
                x = part(entry.detach().requires_grad_(entry.is_floating_point())).detach()
            at_end, kept_at_end = 0, {}
            if number < S - 1:
                small = _on_meta(critic(torch.zeros(x.shape, dtype=x.dtype)))
                at_end = _count(small, x.detach().requires_grad_())[0]
                with _saving(kept_at_end, small):
                    small(x.detach().requires_grad_())
            costs.append((head, inner, at_end))
            saved.append(kept)
            saved.append(kept_at_end)
    if by == "balanced":
        return [
            [float(costs[a][0] + sum(c[1] for c in costs[a + 1 : b]) + costs[b - 1][2]) if b > a else 0.0 for b in range(S + 1)]
            for a in range(S)
        ]
    return [[float(_union(saved, a, b)) if b > a else 0.0 for b in range(S + 1)] for a in range(S)]


def _union(saved: Sequence[dict[int, Tensor]], a: int, b: int) -> int:
    """Bytes of the storages saved by segments a..b-1 and the critic at b, each counted once."""
    whole: dict[int, Tensor] = {}
    for number in range(a, b):
        whole |= saved[2 * number]
    whole |= saved[2 * (b - 1) + 1]
    return sum(_bytes(tensor) for tensor in whole.values())


def _count(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    with FlopCounterMode(display=False) as counter:
        y = module(x)
        if y.requires_grad:
            y.backward(torch.ones_like(y))
    return counter.get_total_flops() // 2, y


def _saving(into: dict[int, Tensor], module: nn.Module) -> torch.autograd.graph.saved_tensors_hooks:
    """Collect the storages that are saved for backward within a `with` block, by identity."""
    weights = {_storage(value) for value in [*module.parameters(), *module.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            into[_storage(tensor)] = tensor
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _on_meta(module: nn.Module) -> Any:
    return copy.deepcopy(module).to("meta").train()


def _meta_like(x: Tensor, grad: bool) -> Tensor:
    return torch.empty_like(x, device="meta").requires_grad_(grad and x.is_floating_point())
