"""Inspect a network before it is trained: where it can be cut, and what groups and critics cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from anytime_lct.counting import component_costs, count_in_turn
from anytime_lct.critics import kinds
from anytime_lct.cutting.groups import segments
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError
from anytime_lct.exits.profile import Cost
from anytime_lct.exits.tasks import TASKS
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe
from anytime_lct.task import TaskName

CUT, CRITIC = CutRecipe(), CriticRecipe()


@dataclass(frozen=True)
class CandidateCut:
    """A legal cut at the end of a block: what crosses, the shape without the batch, and the multiply-adds before it."""

    name: str
    crosses: str
    shape: tuple[int, ...]
    flops: int


@dataclass(frozen=True)
class Part:
    """A layer group of the chosen cut: where it ends, the layout of the tensor that crosses, and the critic behind it.

    `exit` is the cost of the sub-model that ends here. The last group has no critic and is the main network.
    """

    ends: str
    crosses: str
    group: Cost
    critic: Cost | None
    exit: Cost


@dataclass(frozen=True)
class Inspection:
    """`legal` is the number of cuts that one tensor crosses; `places` are those at the ends of blocks.

    `whole` maps modules that are one step each, because torch.fx cannot follow them, to the reason.
    """

    main: Cost
    legal: int
    places: tuple[CandidateCut, ...]
    parts: tuple[Part, ...]
    whole: dict[str, str]


def inspect(
    model: nn.Module,
    example: Tensor,
    cut: CutRecipe = CUT,
    critic: CriticRecipe = CRITIC,
    task: TaskName = "classification",
) -> Inspection:
    """Trace, cut and count a network, which is unchanged. `example` (B >= 2) is a batch of inputs.

    The cut is chosen as `LCTNetwork.cut` does. Raises PartitionError, CriticError and AnalysisError.

    >>> inspect(torchvision.models.resnet18(), torch.zeros(2, 3, 64, 64)).legal
    13
    """
    network = LCTNetwork.cut(model, example, cut, critic, task)
    try:
        trace = Trace.of(model, example)
    except PartitionError as error:  # it is cut by the names of its children
        trace, whole = None, {type(model).__name__: str(error)}
    else:
        whole = trace.recording.whole
    square = kinds.is_square(example)
    layouts = [
        kinds.layout(torch.empty(2, *shape), task, square=square, **(trace.hints(place) if trace else {}))
        for place, shape in zip(network.places, network.shapes, strict=True)
    ]
    of_groups, of_critics = component_costs(network.groups, network.critics, example[:1])  # type: ignore[arg-type]
    totals = [_sum(of_groups[:i]) for i in range(1, len(of_groups) + 1)]
    parts = [
        Part(place, layout, of_group, of_critic, _sum([total, of_critic]))
        for place, layout, of_group, of_critic, total in zip(
            network.places, layouts, of_groups, of_critics, totals, strict=False
        )
    ]
    main = Cost(flops=totals[-1].flops, params=sum(p.numel() for p in model.parameters()))
    return Inspection(
        main=main,
        legal=len(trace.legal) if trace else 0,
        places=tuple(_candidates(trace, example[:1], task)) if trace else (),
        parts=(*parts, Part("output", "logits", of_groups[-1], None, main)),
        whole=whole,
    )


def _candidates(trace: Trace, example: Tensor, task: TaskName) -> list[CandidateCut]:
    steps, square = example.shape[1] if TASKS[task].is_text else 1, kinds.is_square(example)
    parts = segments(trace, [cut.position for cut in trace.candidates])[:-1]
    amounts, crossing = count_in_turn(parts, example)
    return [
        CandidateCut(
            name=cut.name,
            crosses=kinds.layout(h, task, square=square, **trace.hints(cut.name)),
            shape=tuple(h.shape[1:]),
            flops=total // steps,
        )
        for cut, h, total in zip(trace.candidates, crossing, accumulate(amounts), strict=True)
    ]


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(flops=sum(cost.flops for cost in costs), params=sum(cost.params for cost in costs))
