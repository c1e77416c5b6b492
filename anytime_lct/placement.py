"""Where to cut, and which worker gets which groups: the best choice by layers, training cost, time or memory, exactly.

The candidates cut a network into S segments. A group is a run of segments, so that the best choice of N-1 candidates
follows by dynamic programming from a table of what segments a..b-1 cost as one group (`costs`); so does the best choice
of which neighbouring groups share a worker.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from anytime_lct import costs, partition
from anytime_lct.costs import NOBODY, MakeCritic, Others, Strategy, Table
from anytime_lct.errors import PartitionError
from anytime_lct.partition import Trace

CORRECTIONS = 4  # choices that are run before one is taken
CLOSE = 1.04  # a machine's pace drifts so much: choices as near to the best are run once more, in turns


def place(
    trace: Trace,
    example: Tensor,
    num_groups: int,
    by: Strategy,
    critic: MakeCritic,
    weight_copies: int = 0,
    others: Others = NOBODY,
) -> tuple[str, ...]:
    """Choose the N-1 places that cut a network into the best N groups.

    layers: as even as possible in depth, layers with weights on the longest path (least sum of squares).
    balanced: the smallest possible maximum of multiply-adds in training, each group's critic included.
    measured: the same for seconds, measured here and now on a batch like `example`, by `others` at the same time, who
    come to the same choice. memory: the same for the bytes saved for the backward pass, and with `weight_copies` of so
    many copies of the weights and of what is on its way between workers. Ties go to the more even choice, then to the
    earlier cuts. `critic` makes a critic, or None, for a (meta) tensor that crosses a cut and the multiply-adds of all
    that follows it. Raises PartitionError where there are fewer candidates than cuts.

    >>> place(trace(resnet18()), torch.zeros(2, 3, 64, 64), 3, "layers", lambda hidden, follows: None)
    ('layer2.0', 'layer3.1')
    """
    if not 1 <= num_groups <= len(trace.candidates) + 1:
        raise PartitionError(
            f"Expected from 1 to {len(trace.candidates) + 1} layer groups, got {num_groups}; the network "
            f"can be cut after {partition.listed(trace.candidates)}."
        )
    if num_groups == 1:
        return ()
    table = costs.of_segments(trace, example, by, critic, weight_copies, others)
    bounds = best_bounds(table, num_groups, minimax=by != "layers")
    if by == "measured":
        bounds = _corrected(trace, example, num_groups, table, bounds, critic, others)
    return tuple(trace.candidates[k - 1].name for k in bounds)


def _corrected(
    trace: Trace,
    example: Tensor,
    num_groups: int,
    table: Table,
    bounds: tuple[int, ...],
    critic: MakeCritic,
    others: Others,
) -> tuple[int, ...]:
    """Run the chosen groups as they will be trained, correct the table by what they took, and choose again."""
    tried: dict[tuple[int, ...], list[int]] = {}
    while bounds not in tried and len(tried) < CORRECTIONS:
        tried[bounds], table = costs.corrected(trace, bounds, table, example, critic, others)
        chosen = best_bounds(table, num_groups, minimax=True)
        bounds = _relieved(bounds, tried[bounds], len(table)) if chosen in tried else chosen
    contenders = _close(tried)
    for choice in contenders if len(contenders) > 1 else []:
        again, _ = costs.corrected(trace, choice, table, example, critic, others)
        tried[choice] = [min(times) for times in zip(tried[choice], again, strict=True)]
    contenders = _close({choice: tried[choice] for choice in contenders})
    return min(contenders, key=lambda choice: sum(tried[choice]))  # less work leaves more of the memory to the others


def _close(tried: dict[tuple[int, ...], list[int]]) -> list[tuple[int, ...]]:
    """Choices whose slowest group is within the noise of the best."""
    best = min(max(took) for took in tried.values())
    return [choice for choice, took in tried.items() if max(took) <= CLOSE * best]


def _relieved(bounds: tuple[int, ...], took: list[int], end: int) -> tuple[int, ...]:
    """Give the slowest group's outermost segment to its faster neighbour."""
    slow = took.index(max(took))
    before, after = (took[k] if 0 <= k < len(took) else math.inf for k in (slow - 1, slow + 1))
    moved = [0, *bounds, end]
    moved[slow if before < after else slow + 1] += 1 if before < after else -1
    inner = tuple(moved[1:-1])
    return inner if all(a < b for a, b in pairwise(moved)) else bounds


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


def spread(table: Table, workers: int) -> tuple[int, ...]:
    """Give neighbouring groups to workers so that the largest cost of a worker is the smallest.

    `table` says what a worker costs that owns groups a..b-1 (`costs.of_workers`). Returns the bounds: worker w owns
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
