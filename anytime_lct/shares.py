"""Where to cut so that exits cost given shares of what the main network costs to answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from anytime_lct import counting, partition
from anytime_lct.costs import MakeCritic, measuring, meta_like, on_meta
from anytime_lct.errors import PartitionError
from anytime_lct.partition import Trace


def at_shares(trace: Trace, example: Tensor, shares: Sequence[float], critics: Sequence[MakeCritic]) -> tuple[str, ...]:
    """Choose for each exit the last place where it costs at most its share of the main network's multiply-adds.

    An exit's cost is that of the groups up to it and of its critic, made by its own of `critics`; convolutions and
    matrix products are counted. Raises PartitionError where no place is left within a share.

    >>> at_shares(trace(resnet18()), torch.zeros(2, 3, 64, 64), [0.3, 0.6], [lambda hidden, follows: None] * 2)
    ('layer1', 'layer3.0')
    """
    chosen: list[int] = []
    for share, critic in zip(shares, critics, strict=True):
        *costs, whole = of_exits(trace, example, critic)
        left = range(chosen[-1] + 1 if chosen else 0, len(costs))
        fitting = [k for k in left if costs[k] <= share * whole]
        if not fitting:
            cheapest = min(left, key=lambda k: costs[k], default=None)
            hint = "the network has no place left to cut after"
            if cheapest is not None:
                name = trace.candidates[cheapest].name
                hint = f"the cheapest, after '{name}', takes {costs[cheapest] / whole:.1%} with its critic"
            raise PartitionError(
                f"Expected room for exit {len(chosen) + 1} within {share:.1%} of the main network's multiply-adds, but "
                f"{hint}; raise the share, or choose a cheaper critic, for example slim."
            )
        chosen.append(fitting[-1])
    return tuple(trace.candidates[k].name for k in chosen)


def of_exits(trace: Trace, example: Tensor, critic: MakeCritic) -> list[int]:
    """Return the multiply-adds of answering a batch like `example` at an exit behind each candidate, critic included.

    The last number is that of the whole network. Convolutions and matrix products are counted, on meta tensors.
    """
    own, behind, entries = [], [], [meta_like(example)]
    with measuring(example, without_values=True):
        for part in partition.segments(trace, [cut.position for cut in trace.candidates]):
            cost, hidden = counting.answering(on_meta(part), entries[-1])
            own.append(cost)
            entries.append(hidden)
        reached = list(accumulate(own))
        for cost, hidden in zip(reached[:-1], entries[1:-1], strict=True):
            made = critic(hidden, reached[-1] - cost)
            behind.append(0 if made is None else counting.answering(on_meta(made), hidden)[0])
    return [cost + end for cost, end in zip(reached, [*behind, 0], strict=True)]
