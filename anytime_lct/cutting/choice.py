"""Balanced groups, and which worker owns which: the optimal choice by layers, training cost, time or memory.

The candidates cut a network into S segments. A group is a run of segments, so that dynamic programming finds the best
N-1 candidates from a table of the costs of segments a..b-1 as one group (`costs`). The same algorithm chooses which
neighbouring groups share a worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from anytime_lct.cutting import costs, seconds
from anytime_lct.cutting.costs import MakeCritic, Table
from anytime_lct.cutting.groups import segments
from anytime_lct.cutting.seconds import NO_PEERS, Peers
from anytime_lct.cutting.trace import Trace, listed
from anytime_lct.errors import PartitionError
from anytime_lct.recipes.recipe import Strategy

CORRECTIONS = 4  # at most so many choices are measured
CLOSE = 1.04  # a machine's speed drifts by this factor: choices this close to the best are measured again, in turns


def best_cuts(
    trace: Trace,
    example: Tensor,
    num_groups: int,
    by: Strategy,
    critic: MakeCritic,
    weight_copies: int = 0,
    peers: Peers = NO_PEERS,
) -> tuple[str, ...]:
    """Choose the N-1 places that cut a network into the best N groups.

    layers: as even as possible in depth, layers with weights on the longest path (least sum of squares). balanced: the
    smallest possible maximum of multiply-adds in training, each group's critic included. measured: the same for
    seconds, measured now on a batch like `example`; `peers` measure at the same time and make the same choice. memory:
    the same for the bytes saved for the backward pass; `weight_copies` > 0 adds so many copies of the weights, and the
    messages between workers. Ties go to the more even choice, then to the earlier cuts. `critic` makes the critic of a
    cut (`costs.MakeCritic`). Raises PartitionError where there are fewer candidates than cuts.

    >>> best_cuts(Trace.of(resnet18()), torch.zeros(2, 3, 64, 64), 3, "layers", lambda *cut: None)
    ('layer2.0', 'layer3.1')
    """
    expect_places(trace, num_groups)
    if num_groups == 1:
        return ()
    if by == "layers":
        table = costs.of_layers(trace)
    else:
        parts = segments(trace, [cut.position for cut in trace.candidates])
        table = _table(parts, critic, example, by, weight_copies, peers)
    bounds = best_bounds(table, num_groups, minimax=by != "layers")
    if by == "measured":
        bounds = _corrected(trace, example, num_groups, table, bounds, critic, peers)
    return tuple(trace.candidates[k - 1].name for k in bounds)


def expect_places(trace: Trace, num_groups: int) -> None:
    """Raise PartitionError where a network has fewer places to cut after than `num_groups` groups need."""
    if num_groups > 1 and not trace.candidates:
        raise PartitionError(
            f"Expected from 1 to 1 layer groups, got {num_groups}; the network cannot be cut, as nowhere between "
            f"layers with weights does one tensor cross alone{_obstacles(trace)}; train it whole, by method bp."
        )
    if not 1 <= num_groups <= len(trace.candidates) + 1:
        raise PartitionError(
            f"Expected from 1 to {len(trace.candidates) + 1} layer groups, got {num_groups}; the network "
            f"can be cut after {listed(trace.candidates)}{_obstacles(trace)}."
        )


def _obstacles(trace: Trace) -> str:
    """Return what keeps a network from being cut at more places, for messages."""
    obstacles = [f"'{path}' is one step, as {reason}" for path, reason in list(trace.recording.whole.items())[:2]]
    if frozen := sum(not p.requires_grad for p in trace.model.parameters()):
        obstacles.append(f"{frozen} of its weight tensors are frozen, and each group needs one to train")
    return "".join(f"; {obstacle}" for obstacle in obstacles)


def _corrected(
    trace: Trace,
    example: Tensor,
    num_groups: int,
    table: Table,
    bounds: tuple[int, ...],
    critic: MakeCritic,
    peers: Peers,
) -> tuple[int, ...]:
    """Run the chosen groups as they will be trained, correct the table by their seconds, and choose again."""
    measured: dict[tuple[int, ...], list[int]] = {}  # bounds: microseconds of each group
    while bounds not in measured and len(measured) < CORRECTIONS:
        measured[bounds], table = seconds.correct(trace, bounds, table, example, critic, peers)
        best = best_bounds(table, num_groups, minimax=True)
        bounds = _relieved(bounds, measured[bounds], len(table)) if best in measured else best
    contenders = _close(measured)
    for choice in contenders if len(contenders) > 1 else []:
        again, _ = seconds.correct(trace, choice, table, example, critic, peers)
        measured[choice] = [min(times) for times in zip(measured[choice], again, strict=True)]
    contenders = _close({choice: measured[choice] for choice in contenders})
    return min(contenders, key=lambda choice: sum(measured[choice]))  # less work leaves more memory to other workers


def _close(measured: dict[tuple[int, ...], list[int]]) -> list[tuple[int, ...]]:
    """Return the choices whose slowest group is within the noise of the best."""
    best = min(max(times) for times in measured.values())
    return [choice for choice, times in measured.items() if max(times) <= CLOSE * best]


def _relieved(bounds: tuple[int, ...], times: list[int], end: int) -> tuple[int, ...]:
    """Move the slowest group's outermost segment to its faster neighbour."""
    slow = times.index(max(times))
    before, after = (times[k] if 0 <= k < len(times) else math.inf for k in (slow - 1, slow + 1))
    moved = [0, *bounds, end]
    moved[slow if before < after else slow + 1] += 1 if before < after else -1
    inner = tuple(moved[1:-1])
    return inner if all(a < b for a, b in pairwise(moved)) else bounds


def best_bounds(table: Table, num_groups: int, *, minimax: bool) -> tuple[int, ...]:
    """Return the inner bounds 0 < k_1 < .. < S of the groups with the least sum of squared costs.

    With `minimax`, only choices whose largest cost is the smallest possible are compared. Ties go to the earlier
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
        best = {b: min(options) for b, options in choices.items()}
    return best[S][1][1:]


def _smallest_maximum(table: Table, num_groups: int) -> float:
    S = len(table)
    row = [0.0] + [math.inf] * S
    for _ in range(num_groups):
        row = [math.inf] + [min(max(row[a], table[a][b]) for a in range(b)) for b in range(1, S + 1)]
    return row[S]


def worker_costs(
    groups: Sequence[nn.Module], critics: Sequence[nn.Module], example: Tensor, by: Strategy, weight_copies: int = 0
) -> Table:
    """Return the table of the cost, or the memory, of a worker that owns groups a..b-1, each with its critic.

    By memory: the activations of one group are alive at a time, the weights of all groups always.

    >>> worker_costs([nn.Linear(7, 6)], [], torch.zeros(3, 7), "balanced")[0][1]  # forward and the weights' gradient
    252
    """
    N = len(groups)
    own_critics = [*critics, *[None] * (N - len(critics))]
    single = _table(
        groups, lambda k, hidden, cost_behind: own_critics[k], example, "balanced" if by in ("layers", "shares") else by
    )
    alone = [single[k][k + 1] for k in range(N)]
    if by != "memory":
        return [[sum(alone[a:b]) for b in range(N + 1)] for a in range(N)]
    weights = [weight_copies * costs.weight_bytes(group) for group in groups]
    for k, critic in enumerate(critics):
        weights[k] += weight_copies * costs.weight_bytes(critic)
    return [[sum(weights[a:b]) + max(alone[a:b], default=0) for b in range(N + 1)] for a in range(N)]


def _table(
    parts: Sequence[nn.Module],
    critic: MakeCritic,
    example: Tensor,
    by: Strategy,
    weight_copies: int = 0,
    peers: Peers = NO_PEERS,
) -> Table:
    if by == "measured":
        return seconds.of_parts(parts, critic, example, peers)
    if by == "memory":
        return costs.of_bytes(parts, critic, example, weight_copies)
    return costs.of_multiply_adds(parts, critic, example)


def spread(table: Table, workers: int) -> tuple[int, ...]:
    """Distribute the groups, in order, over workers so that the largest cost of a worker is the smallest possible.

    `table` holds the cost of a worker that owns groups a..b-1 (`worker_costs`). Returns the bounds: worker w owns
    groups bounds[w]+1 .. bounds[w+1]. Raises PartitionError.

    >>> spread([[0, 5, 6, 7], [0, 0, 1, 2], [0, 0, 0, 1]], 2)  # groups that cost 5, 1 and 1
    (0, 1, 3)
    """
    num_groups = len(table)
    if not 1 <= workers <= num_groups:
        raise PartitionError(
            f"Expected from 1 to {num_groups} workers for {num_groups} layer groups, got {workers}; lower --workers or "
            f"raise --groups."
        )
    return (0, *best_bounds(table, workers, minimax=True), num_groups)
