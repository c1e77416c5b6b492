"""Where a network is cut, and which critics can stand there: the exits' shares of its cost, or a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from anytime_lct.counting import count_in_turn
from anytime_lct.critics import kinds
from anytime_lct.cutting.choice import best_cuts, expect_places
from anytime_lct.cutting.seconds import NO_PEERS, Peers
from anytime_lct.cutting.shares import ExitChoice, Trunks, choose
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import CriticError
from anytime_lct.modes import probing
from anytime_lct.recipes.recipe import DEFAULT_GROUPS, CriticKind, CriticRecipe, CutRecipe
from anytime_lct.task import TaskName

CUT, CRITIC = CutRecipe(), CriticRecipe()


class BringsExits(Protocol):
    """A network that brings its own exits: the modules after which it is cut, and what makes the critic there."""

    exit_places: tuple[str, ...]

    def exit_head(self, place: str) -> nn.Module:
        """Make a critic with new weights that reads what crosses the cut after `place`; (B, K)."""
        ...


def choose_places(
    model: nn.Module,
    example: Tensor,
    cut: CutRecipe = CUT,
    critic: CriticRecipe = CRITIC,
    task: TaskName = "classification",
    weight_copies: int = 0,
    peers: Peers = NO_PEERS,
) -> tuple[str, ...]:
    """Return the places after which `LCTNetwork.cut` cuts, chosen for a batch like `example`.

    Exits have shares (`shares.choose`), or groups are balanced (`choice.best_cuts`). A network that brings its own
    exits (`kind_of`) is cut after its `exit_places`, unless the recipe asks for another number of groups, for shares or
    for a strategy.
    """
    if cut.groups == 1 and not cut.shares:
        return ()
    own: tuple[str, ...] = getattr(model, "exit_places", ())
    default = cut.by == "shares" and not cut.shares and cut.groups in (None, len(own) + 1)
    if default and kind_of(model, critic) == "own":
        return own
    trace = Trace.of(model, example)
    most = len(trace.candidates) + 1
    groups = cut.groups or (min(DEFAULT_GROUPS, most) if most > 1 else DEFAULT_GROUPS)
    expect_places(trace, groups)
    makers = CriticMakers(trace, example, critic, task)
    if targets := cut.targets(groups):
        chosen = choose_exits(makers, targets, strict=bool(cut.shares))
        return tuple(trace.candidates[choice.index].name for choice in chosen)
    deepest = max(kinds.depths(critic, groups - 1), key=lambda depth: depth or 0)
    make = partial(makers.within_share, deepest)
    return best_cuts(trace, example, groups, cut.by, make, weight_copies, peers)


def choose_exits(makers: CriticMakers, targets: Sequence[float], *, strict: bool = True) -> list[ExitChoice]:
    """Return the exits of a network at some shares of its cost (`shares.choose`)."""
    costs = [partial(makers.cost, depth) for depth in kinds.depths(makers.critic, len(targets))]
    return choose(makers.trunks, targets, costs, makers.critic.share, strict=strict)


def kind_of(model: nn.Module, critic: CriticRecipe) -> CriticKind:
    """Return the kind of critics: the recipe's, else the network's own where it has `exit_head`, else residual."""
    return critic.kind or ("own" if hasattr(model, "exit_head") else "residual")


class CriticMakers:
    """Makes and counts the critics behind the candidates of a trace."""

    def __init__(self, trace: Trace, example: Tensor, critic: CriticRecipe, task: TaskName = "classification") -> None:
        self.critic = critic
        self._trace, self._example = trace, example
        self._task: TaskName = task
        self._kind: CriticKind = kind_of(trace.model, critic)
        self._outputs = outputs_of(trace.model, example)
        self._fixed: dict[tuple[int | None, int], int] = {}

    @cached_property
    def trunks(self) -> Trunks:
        """What crosses the candidates, and what leads there costs."""
        return Trunks.of(self._trace, self._example)

    def within_share(self, depth: int | None, k: int, hidden: Tensor, cost_behind: int) -> nn.Module:
        """Make the critic of candidate `k`, within the recipe's budget (`costs.MakeCritic`)."""
        return self._make(depth, k, hidden, self.critic.budget * cost_behind)

    def cost(self, depth: int | None, k: int, hidden: Tensor, budget: float) -> int:
        """Return the multiply-adds per sample of the critic of candidate `k` within a budget (`shares.CriticCost`)."""
        amount = None
        if self._kind != "own":
            layout = self._layout(k, hidden)
            amount = kinds.multiply_adds(self._kind, hidden, self._outputs, depth, layout, budget)
        if amount is not None:
            return amount
        if (depth, k) not in self._fixed:
            with torch.random.fork_rng(devices=[]):
                critic = self._make(depth, k, hidden, budget)
            self._fixed[depth, k] = count_in_turn([critic], hidden)[0][0]
        return self._fixed[depth, k]

    def _make(self, depth: int | None, k: int, hidden: Tensor, budget: float) -> nn.Module:
        if self._kind == "own":
            return own_critic(self._trace.model, self._trace.candidates[k].name, hidden)
        layout = self._layout(k, hidden)
        return kinds.build(self._kind, hidden, self._outputs, self._task, depth, layout, budget)

    def _layout(self, k: int, hidden: Tensor) -> kinds.Layout:
        hints = self._trace.hints(self._trace.candidates[k].name)
        return kinds.layout(hidden, self._task, square=kinds.is_square(self._example), **hints)


def own_critic(model: nn.Module, place: str, hidden: Tensor) -> nn.Module:
    """Make the critic that a network brings for the cut after `place`; raises CriticError where it has none."""
    if not hasattr(model, "exit_head"):
        raise CriticError(
            f"Expected a network with a method exit_head(place) for critic.kind = 'own', got {type(model).__name__}; "
            f"choose residual or slim."
        )
    network = cast("BringsExits", model)
    if place not in network.exit_places:
        raise CriticError(
            f"The network has no exit of its own after '{place}'; cut after {', '.join(network.exit_places)}, or "
            f"choose critic.kind = residual."
        )
    with torch.device(hidden.device):
        return network.exit_head(place)


def outputs_of(model: nn.Module, example: Tensor) -> int:
    """Return K, the number of classes or symbols that a network answers with, (B, K) or (B, T, K)."""
    with probing(model):
        return model(example).shape[-1]
