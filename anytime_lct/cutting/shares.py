"""Exits at shares of the main network's cost: the cut and the size of the critic of every exit, chosen together.

    exit i at a share s of M      | f_1 .. f_i | c_i |           trunk + critic <= s x M
                                    trunk        critic            critic / (trunk + critic) near `aim`

A cheap critic behind a deep trunk makes a poor early exit: its group must serve a reader that computes little. So a
critic takes a fair part of its exit's cost, and the trunk is cut early enough to leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from anytime_lct.counting import count_in_turn
from anytime_lct.cutting.costs import measuring
from anytime_lct.cutting.groups import segments
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError

# The multiply-adds per sample of the critic of a candidate: from its index, the tensor that crosses it, and the budget.
CriticCost = Callable[[int, Tensor, float], int]
OVERSPENT, SLACK, SLIGHTLY_OVERSPENT = 10.0, 1.05, 0.1
UNSPENT = 2.0  # what a share that is not spent weighs beside a critic's distance from its part


@dataclass(frozen=True)
class Trunks:
    """What crosses each candidate of a trace, and the multiply-adds per sample up to it; `whole` is the network's."""

    names: tuple[str, ...]
    hidden: tuple[Tensor, ...]
    amounts: tuple[int, ...]
    whole: int

    @classmethod
    def of(cls, trace: Trace, example: Tensor) -> Trunks:
        """Run the network on a batch like `example` (`counting.count_in_turn`)."""
        with measuring(example, without_values=False):
            amounts, outputs = count_in_turn(segments(trace, [cut.position for cut in trace.candidates]), example)
        *amounts, whole = accumulate(amounts)
        return cls(tuple(cut.name for cut in trace.candidates), tuple(outputs[:-1]), tuple(amounts), whole)


@dataclass(frozen=True)
class ExitChoice:
    """An exit behind candidate `index`, and its multiply-adds per sample: of the groups up to it, and of its critic."""

    index: int
    trunk: int
    critic: int

    @property
    def cost(self) -> int:
        return self.trunk + self.critic


def choose(
    trunks: Trunks, shares: Sequence[float], critics: Sequence[CriticCost], aim: float, *, strict: bool = True
) -> list[ExitChoice]:
    """Choose the exit for each share: one that spends its share, with a critic that takes about `aim` of it.

    A number above 1 is no share, but multiply-adds. All exits are chosen together. Without `strict` an exit for whose
    share there is no room is one that is over it by little. Raises PartitionError where there are too few places, or no
    room within a share.
    """
    if len(shares) > len(trunks.names):
        raise PartitionError(
            f"Expected at most {len(trunks.names)} exits before the main network's own, got {len(shares)} shares; the "
            f"network can be cut at {len(trunks.names)} places."
        )
    best: list[tuple[float, tuple[ExitChoice, ...]]] = [(0.0, ())]  # of the exits before, by where the last one ends
    for number, (share, critic) in enumerate(zip(shares, critics, strict=True), start=1):
        limit = share * trunks.whole if share < 1 else share
        exits = [
            ExitChoice(k, trunk, critic(k, hidden, limit - trunk))
            for k, (trunk, hidden) in enumerate(zip(trunks.amounts, trunks.hidden, strict=True))
        ]
        extended = list[tuple[float, tuple[ExitChoice, ...]]]()
        for choice in exits:
            before = [(total, chosen) for total, chosen in best if not chosen or chosen[-1].index < choice.index]
            if before and (choice.cost <= limit or not strict):
                total, chosen = min(before, key=lambda option: option[0])
                extended.append((total + badness(choice, limit, aim), (*chosen, choice)))
        if not extended:
            start = min((chosen[-1].index + 1 for _, chosen in best if chosen), default=0)
            raise _no_room(trunks, number, share, exits[start:])
        best = extended
    return list(min(best, key=lambda option: option[0])[1])


def badness(choice: ExitChoice, limit: float, aim: float) -> float:
    """Return 0 for an exit that spends its share, with a critic that takes `aim` of it.

    It is little more for an exit that is over its share by up to 5%, and more than 10 for any beyond.
    """
    if choice.cost > SLACK * limit:
        return OVERSPENT * choice.cost / limit
    part = choice.critic / max(1, choice.cost)
    unspent = UNSPENT * abs(1 - choice.cost / limit)
    return unspent + abs(part - aim) + (SLIGHTLY_OVERSPENT if choice.cost > limit else 0.0)


def _no_room(trunks: Trunks, number: int, share: float, exits: Sequence[ExitChoice]) -> PartitionError:
    limit = f"{share:.1%} of the main network's multiply-adds" if share < 1 else f"{share:,.0f} multiply-adds"
    if not exits:
        return PartitionError(
            f"Expected a place for exit {number} within {limit}, but the exits before it take all of "
            f"the network's places; ask for fewer exits, or raise the first budgets."
        )
    cheapest = min(exits, key=lambda choice: choice.cost)
    need = f"{cheapest.cost / trunks.whole:.1%}" if share < 1 else f"{cheapest.cost:,}"
    return PartitionError(
        f"Expected room for exit {number} within {limit}, but the cheapest, after '{trunks.names[cheapest.index]}', "
        f"takes {need} with its critic; raise the budget, or choose a cheaper critic, for example slim."
    )
