"""The networks of benchmarks/levers.py: residual trunks with exits by budget, written down without the toolkit.

A network is a list of groups f_i, critics' bodies and linear heads. Exit i pools what its body makes of h_i and reads
it with its head; the main network's exit has no body. Every body is some residual blocks that stride down to 8x8, as
wide as the exit's budget allows. Blocks, initialisation and counts are those of `anytime_lct/models/resnet.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

CLASSES, SIDE, POOLED_SIDE, STEM = 10, 32, 8, 16
Crossing = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trunk:
    """A stem of 16 channels and blocks of (channels, stride), cut behind the stem and so many blocks each."""

    blocks: tuple[tuple[int, int], ...]
    cuts: tuple[int, int, int]

    def behind(self, blocks: int) -> tuple[int, int]:
        """Return channels and side of the map behind the stem and so many blocks."""
        channels = [STEM, *(width for width, _ in self.blocks)]
        return channels[blocks], SIDE // prod(stride for _, stride in self.blocks[:blocks])


RESNET14 = ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1))  # 26.7M multiply-adds
EARLYWIDE = ((40, 2), (80, 2), (80, 1), (80, 1))  # 26.2M
FINEWIDE = ((24, 2), (32, 1), (64, 2), (80, 1), (80, 1))  # 25.1M
TRUNKS = {  # share of each exit's cost that its critic may take, when exits cost 25, 50 and 75%
    "resnet14": Trunk(RESNET14, (0, 1, 3)),  # 93, 61, 32%
    "resnet14-early": Trunk(RESNET14, (0, 1, 2)),  # 93, 61, 51%
    "resnet14-late": Trunk(RESNET14, (1, 2, 3)),  # 23, 26, 32%
    "resnet14-mid": Trunk(RESNET14, (0, 2, 3)),  # 93, 26, 32%
    "earlywide": Trunk(EARLYWIDE, (0, 1, 2)),  # 93, 56, 41%
    "earlywide-late": Trunk(EARLYWIDE, (1, 2, 3)),  # 12, 12, 4%
    "finewide": Trunk(FINEWIDE, (1, 2, 3)),  # 56, 44, 43%
    "finewide-early": Trunk(FINEWIDE, (0, 1, 2)),  # 93, 78, 62%
    "finewide-late": Trunk(FINEWIDE, (1, 3, 4)),  # 56, 14, 6%
}


@dataclass(frozen=True)
class Critics:
    """How critics are built: shares of main's cost that exits may take, blocks, and widths at 16x16 over those at 8x8.

    With `concat` an exit's head also reads the pooled features of the exit before it, without a gradient.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    blocks: int = 2
    ratio: float = 0.375
    concat: bool = False


class Whitened(nn.Module):
    """A 3x3 convolution whose weights are a trained mix of fixed filters that whiten patches of the training images.

    It folds into one plain convolution, so that it costs what that costs.
    """

    def __init__(self, filters: Tensor, outputs: int) -> None:
        super().__init__()
        self.register_buffer("filters", filters)  # (27, 27)
        self.mix = nn.Parameter(torch.randn(outputs, len(filters)) * len(filters) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = (self.mix @ self.filters).view(-1, 3, 3, 3)
        return F.conv2d(x, weight, padding=1)


def whitening(images: Tensor) -> Tensor:
    """Return 27 filters, (27, 27), that whiten the 3x3 patches of normalised images (N, 3, H, W)."""
    patches = F.unfold(images.float(), 3).transpose(1, 2).reshape(-1, 27)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T).double())
    return (vectors / (values + 1e-2).sqrt()).T.float().contiguous()


class Network(nn.Module):
    """Groups, critics' bodies and heads of some exits; `forward` returns the logits (B, 10) of every exit."""

    def __init__(
        self, groups: Sequence[nn.Module], bodies: Sequence[nn.Module], features: Sequence[int], concat: bool = False
    ) -> None:
        super().__init__()
        before = [0, *features] if concat else [0] * len(features)
        self.groups, self.bodies, self.concat = nn.ModuleList(groups), nn.ModuleList(bodies), concat
        self.heads = nn.ModuleList(
            nn.Linear(here + more, CLASSES) for here, more in zip(features, before, strict=False)
        )

    def forward(self, x: Tensor, cross: Crossing = lambda h: h, read: Crossing = lambda h: h) -> list[Tensor]:
        """`cross` is what a group hands to the next one, `read` what it hands to its critic."""
        return self.run(x, cross, read)[0]

    def run(self, x: Tensor, cross: Crossing, read: Crossing) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits of every exit, and h_1 .. h_N with their graphs."""
        logits, maps, before = list[Tensor](), list[Tensor](), None
        last = len(self.groups) - 1
        for i, group in enumerate(self.groups):
            h = group(x)
            features = self.bodies[i](read(h) if i < last else h).mean((2, 3))
            logits.append(self.heads[i](features if before is None else torch.cat([features, before.detach()], 1)))
            before = features if self.concat else None
            maps.append(h)
            x = cross(h)
        return logits, maps

    def answer(self, x: Tensor, i: int, first: int = 0) -> Tensor:
        """Return the logits of exit i, from 0, alone, of the input of group `first`; not with `concat`."""
        for group in self.groups[first : i + 1]:
            x = group(x)
        return self.heads[i](self.bodies[i](x).mean((2, 3)))

    def of_groups(self, i: int) -> list[nn.Parameter]:
        """Return the weights of group i, from 0; the last one's exit is its own."""
        own = [*self.groups[i].parameters()]
        last = i == len(self.groups) - 1
        return [*own, *self.bodies[i].parameters(), *self.heads[i].parameters()] if last else own

    def of_critics(self, i: int) -> list[nn.Parameter]:
        """Return the weights of critic i, from 0; the main network has none."""
        return [] if i == len(self.groups) - 1 else [*self.bodies[i].parameters(), *self.heads[i].parameters()]


def build(trunk: Trunk, critics: Critics, alone: int = 0, filters: Tensor | None = None) -> Network:
    """Build a network with its four exits, or the network of one exit `alone`, 1 to 4; weights are fresh."""
    edges = [0, *(1 + cut for cut in trunk.cuts), 1 + len(trunk.blocks)]
    units, channels = [_stem(filters)], STEM
    for outputs, stride in trunk.blocks:
        units.append(_block(channels, outputs, stride))
        channels = outputs
    groups = [nn.Sequential(*units[a:b]) for a, b in pairwise(edges)]
    bodies, features = list[nn.Module](), list[int]()
    for cut, pair in zip(trunk.cuts, widths(trunk, critics), strict=True):
        bodies.append(_body(*trunk.behind(cut), pair, critics))
        features.append(pair[1])
    bodies.append(nn.Identity())
    features.append(channels)
    if alone:
        groups, bodies, features = [nn.Sequential(*groups[:alone])], [bodies[alone - 1]], [features[alone - 1]]
    network = Network(groups, bodies, features, critics.concat and not alone)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None  # counts nothing here, and takes a kernel for every step
    return network


@cache
def widths(trunk: Trunk, critics: Critics) -> tuple[tuple[int, int], ...]:
    """Return the widths at 16x16 and 8x8 of every critic: the widest, in multiples of 8, that keep the exit's share.

    First both grow at their ratio, then the one at 8x8 as far as it goes.
    """
    before, main = trunk_costs(trunk)
    fitting = []
    for cut, cost, share in zip(trunk.cuts, before, critics.shares, strict=True):
        left, place = share * main - cost, trunk.behind(cut)
        width = 8
        while _body_cost(*place, _at_ratio(width + 8, critics), critics) <= left:
            width += 8
        middle = _at_ratio(width, critics)[0]
        while _body_cost(*place, (middle, width + 8), critics) <= left:
            width += 8
        fitting.append((middle, width))
    return tuple(fitting)


def trunk_costs(trunk: Trunk) -> tuple[list[int], int]:
    """Return the multiply-adds in front of every cut, and those of the main network."""
    spent, place = [27 * STEM * SIDE**2], (STEM, SIDE)
    for outputs, stride in trunk.blocks:
        spent.append(spent[-1] + _block_cost(*place, outputs, stride))
        place = (outputs, place[1] // stride)
    return [spent[cut] for cut in trunk.cuts], spent[-1] + place[0] * CLASSES


def exit_costs(trunk: Trunk, critics: Critics) -> list[int]:
    """Return the multiply-adds of every exit; with `concat` an exit needs the critics before it as well."""
    before, main = trunk_costs(trunk)
    costs, earlier = list[int](), 0
    for cut, cost, pair in zip(trunk.cuts, before, widths(trunk, critics), strict=True):
        own = _body_cost(*trunk.behind(cut), pair, critics)
        costs.append(cost + own + earlier)
        earlier += own if critics.concat else 0
    return [*costs, main + earlier]


def _at_ratio(width: int, critics: Critics) -> tuple[int, int]:
    return max(8, round(critics.ratio * width / 8) * 8), width


def _stem(filters: Tensor | None) -> nn.Sequential:
    convolution = nn.Conv2d(3, STEM, 3, padding=1, bias=False) if filters is None else Whitened(filters, STEM)
    return nn.Sequential(convolution, nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, shortcut)


def _block_cost(inputs: int, side: int, outputs: int, stride: int) -> int:
    shortcut = inputs * outputs if stride != 1 or inputs != outputs else 0
    return (side // stride) ** 2 * (9 * inputs * outputs + 9 * outputs**2 + shortcut)


def _plan(side: int, pair: tuple[int, int], critics: Critics) -> list[tuple[int, int]]:
    """Return channels and stride of a critic's blocks: down to 8x8, then more of stride 1."""
    plan = list[tuple[int, int]]()
    while side > POOLED_SIDE or len(plan) < critics.blocks:
        stride = 2 if side > POOLED_SIDE else 1
        side //= stride
        plan.append((pair[side <= POOLED_SIDE], stride))
    return plan


def _body(channels: int, side: int, pair: tuple[int, int], critics: Critics) -> nn.Sequential:
    blocks = list[nn.Module]()
    for outputs, stride in _plan(side, pair, critics):
        blocks.append(_block(channels, outputs, stride))
        channels = outputs
    return nn.Sequential(*blocks)


def _body_cost(channels: int, side: int, pair: tuple[int, int], critics: Critics) -> int:
    """Return the multiply-adds of a critic with its head."""
    cost = 0
    for outputs, stride in _plan(side, pair, critics):
        cost += _block_cost(channels, side, outputs, stride)
        channels, side = outputs, side // stride
    return cost + channels * CLASSES
