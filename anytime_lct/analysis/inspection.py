"""Look at a network before anything is trained: where it can be cut, what groups and critics would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from anytime_lct import counting as complexity
from anytime_lct import critics
from anytime_lct.cutting.groups import segments
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError
from anytime_lct.exits.profile import Cost
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe
from anytime_lct.task import TaskName

BALANCED, RESIDUAL = CutRecipe(by="balanced"), CriticRecipe(kind="residual")


@dataclass(frozen=True)
class Place:
    """Where a network may be cut: what crosses, without the batch, and the multiply-adds of all that comes before."""

    name: str
    crosses: str
    shape: tuple[int, ...]
    flops: int


@dataclass(frozen=True)
class Part:
    """A layer group of the chosen cut, where it ends, what crosses there, and the critic behind it.

    `exit` is the cost of the sub-model that ends here. The last group has no critic and is the main network.
    """

    ends: str
    crosses: str
    group: Cost
    critic: Cost | None
    exit: Cost


@dataclass(frozen=True)
class Inspection:
    """`legal` counts all cuts that one tensor crosses; `places` are those at the ends of blocks.

    `whole` maps modules that are one step each, because torch.fx cannot follow them, to the reason.
    """

    main: Cost
    legal: int
    places: tuple[Place, ...]
    parts: tuple[Part, ...]
    whole: dict[str, str]


def inspect(
    model: nn.Module,
    example: Tensor,
    cut: CutRecipe = BALANCED,
    critic: CriticRecipe = RESIDUAL,
    task: TaskName = "classification",
) -> Inspection:
    """Trace, cut and count a network; it is left as it was. `example` (B >= 2) is a batch of inputs.

    The cut is chosen as `LCTNetwork.cut` does. Raises PartitionError, CriticError and AnalysisError.

    >>> inspect(torchvision.models.resnet18(), torch.zeros(2, 3, 64, 64)).legal
    13
    """
    network = LCTNetwork.cut(model, example, cut, critic, task)
    try:
        trace = Trace.of(model)
    except PartitionError as error:  # cut by the names of children
        trace, whole = None, {type(model).__name__: str(error)}
    else:
        whole = trace.recording.whole
    square = critics.is_square(example)
    crosses = [
        critics.layout(torch.empty(2, *shape), task, square=square, **(trace.hints(place) if trace else {}))
        for place, shape in zip(network.places, network.shapes, strict=True)
    ]
    of_groups, of_critics = complexity.components(network.groups, network.critics, example[:1])  # type: ignore[arg-type]
    reached = [_sum(of_groups[:i]) for i in range(1, len(of_groups) + 1)]
    parts = [
        Part(place, kind, group, of_critic, _sum([cost, of_critic]))
        for place, kind, group, of_critic, cost in zip(
            network.places, crosses, of_groups, of_critics, reached, strict=False
        )
    ]
    main = Cost(flops=reached[-1].flops, params=sum(p.numel() for p in model.parameters()))
    return Inspection(
        main=main,
        legal=len(trace.legal) if trace else 0,
        places=tuple(_places(trace, example[:1], task)) if trace else (),
        parts=(*parts, Part("output", "logits", of_groups[-1], None, main)),
        whole=whole,
    )


def _places(trace: Trace, example: Tensor, task: TaskName) -> list[Place]:
    steps, square = example.shape[1] if task == "language-model" else 1, critics.is_square(example)
    hidden, entries, flops = example, [], []
    parts = segments(trace, [cut.position for cut in trace.candidates])[:-1]
    for part in parts:
        flops.append(complexity.count(part, hidden, steps=steps).flops)
        with probing(part):
            hidden = part(hidden)
        entries.append(hidden)
    return [
        Place(cut.name, critics.layout(h, task, square=square, **trace.hints(cut.name)), tuple(h.shape[1:]), cost)
        for cut, h, cost in zip(trace.candidates, entries, accumulate(flops), strict=True)
    ]


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(flops=sum(cost.flops for cost in costs), params=sum(cost.params for cost in costs))
