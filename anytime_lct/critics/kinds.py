"""Local critics: small networks that turn the tensor that crosses a cut into the output of an exit.

    kind            map (B, C, H, W)                              vector (B, F)      sequence (B, T, F)
    paper           depth x [conv3x3 128, ReLU], flatten, linear  linear             linear at every step
    paper-imagenet  2 x [conv3x3 64, ReLU], conv3x3 to 1 channel, -                  -
                    pooled to 8x8, flatten, linear
    slim            pool to 8x8, conv1x1, depth x [conv3x3],      linear             linear at every step
                    batch norm and ReLU after each, pool, linear
    residual        basic blocks down to 8x8 as wide as the       linear             3 x linear at every step
                    budget allows, pool, linear (`residual`)
    own             whatever the network's own method exit_head(place) makes

Maps with channels last (B, H, W, C), as in Swin, are permuted to (B, C, H, W) first. Of tokens (B, T, C) a critic reads
the mean and, where the network has one, the class token: slim and residual critics by layer norm and linear layers, the
paper's by linear layers. A signal (B, C, T), of a network of 1-d convolutions, is a map of width 1. Volumes
(B, C, D, H, W), of 3-d convolutions, have residual critics alone.

The paper's critics work at the full resolution of the map, so that on 32x32 images the three critics of ResNet-50 take
42% of the multiply-adds of the main network. The slim critic pools first: 0.9%. The residual critic is a short
imitation of the groups behind it (as in Nokland and Eidnes 2019; Belilovsky et al. 2020), within a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from anytime_lct.critics.residual import ResidualPlan, plan
from anytime_lct.errors import CriticError
from anytime_lct.exits.tasks import TASKS
from anytime_lct.recipes.recipe import CriticKind, CriticRecipe
from anytime_lct.task import TaskName

Layout = Literal[
    "map", "channels-last map", "signal", "volume", "tokens", "tokens with a class token", "vector", "sequence"
]
MAPS: tuple[Layout, ...] = ("map", "channels-last map", "signal", "volume")
PAPER_WIDTH = 128
PAPER_IMAGENET_WIDTH = 64
SLIM_MIN_WIDTH, SLIM_MAX_WIDTH = 32, 48
SEQUENCE_LAYERS = 3  # measured: benchmarks/results/table5_small.md
POOLED_SIDE = 8


def depths(critic: CriticRecipe, count: int) -> list[int | None]:
    """Return the depth of each of `count` critics: as in the recipe, one for all or one each; None is the default.

    Raises CriticError for another number of depths.

    >>> depths(CriticRecipe(depth=(3, 2, 1)), 3)
    [3, 2, 1]
    """
    if critic.depth is None or isinstance(critic.depth, int):
        return [critic.depth] * count
    values = list(critic.depth)
    if len(values) != count:
        raise CriticError(f"Expected one critic depth, or {count} of them, one per critic; got {len(values)}.")
    return [*values]


def is_square(images: Tensor) -> bool:
    """Return whether images (B, C, H, W) are square; True for other inputs."""
    return images.dim() != 4 or images.shape[2] == images.shape[3]


def layout(
    hidden: Tensor,
    task: TaskName = "classification",
    *,
    class_token: bool = False,
    linear_next: bool = False,
    square: bool = True,
    channels: int = 0,
    convolved: bool = False,
) -> Layout:
    """Return the layout of a tensor that crosses a cut; raises CriticError for a shape that no critic reads.

    The channels of a 4-dimensional tensor are the axis beside two equal sizes. Where that is ambiguous, as for images
    that are not `square`, they are the last axis if the next layer is linear (`linear_next`). A 3-dimensional tensor of
    a classifier is a signal if its first axis has the `channels` that the layer before puts out; where both axes have
    as many, if that layer is a convolution (`convolved`). Otherwise it holds tokens, the first of them a class token if
    the network later reads it alone (`class_token`).

    >>> layout(torch.zeros(2, 7, 7, 768))
    'channels-last map'
    """
    is_text = TASKS[task].is_text
    if not is_text and hidden.dim() == 5:
        return "volume"
    if not is_text and hidden.dim() == 4:
        first, second, third = hidden.shape[1:]
        decisive = square and (first == second) != (second == third)
        last = first == second if decisive else linear_next
        return "channels-last map" if last else "map"
    if not is_text and hidden.dim() == 3:
        if channels == hidden.shape[1] and (convolved or channels != hidden.shape[2]):
            return "signal"
        return "tokens with a class token" if class_token else "tokens"
    if not is_text and hidden.dim() == 2:
        return "vector"
    if is_text and hidden.dim() == 3:
        return "sequence"
    raise CriticError(
        f"A critic for {task} cannot read a tensor of shape {tuple(hidden.shape)}; expected a map (B, C, H, W) or "
        f"(B, H, W, C), a volume (B, C, D, H, W), a signal (B, C, T), tokens (B, T, C) or a vector (B, F), for a "
        f"language model a sequence (B, T, F); cut elsewhere."
    )


def build(
    kind: CriticKind,
    hidden: Tensor,
    outputs: int,
    task: TaskName = "classification",
    depth: int | None = None,
    read_as: Layout | None = None,
    budget: float | None = None,
) -> nn.Module:
    """Make the critic that turns a tensor like `hidden` into `outputs` logits for every sample (or time step).

    `depth` counts 3x3 convolutions (residual: blocks of two) for maps and linear layers for all other tensors; by
    default it is 1, but residual critics have 3 layers for sequences, and for maps what their budget allows. `read_as`
    defaults to `layout(hidden)`. `budget` is the largest number of multiply-adds per sample of a residual critic of a
    map (`residual.plan`). Raises CriticError where the kind is unknown or does not suit the shape.

    >>> build("slim", torch.zeros(2, 256, 32, 32), outputs=10)(torch.zeros(2, 256, 32, 32)).shape
    torch.Size([2, 10])
    """
    if kind not in get_args(CriticKind):
        raise CriticError(f"Expected a critic of kind {', '.join(get_args(CriticKind))}, got '{kind}'.")
    if kind == "own":
        raise CriticError("Expected a network with a method exit_head(place) for critics of its own; choose residual.")
    read_as = read_as or layout(hidden, task)
    if depth is not None and depth < 1:
        raise CriticError(f"Expected a critic depth of at least 1, got {depth}.")
    if kind == "residual" and read_as in MAPS:
        critic = _plan(hidden, outputs, depth, read_as, budget).build()
        return critic if read_as in ("map", "volume") else nn.Sequential(_as_map(read_as), *critic)
    if read_as == "volume":
        raise CriticError(f"A '{kind}' critic cannot read a volume, of shape {tuple(hidden.shape)}; choose residual.")
    depth = depth or (SEQUENCE_LAYERS if kind == "residual" and read_as == "sequence" else 1)
    if read_as in MAPS:
        channels, height, width = _map_shape(hidden, read_as)
        critic = MAP_CRITICS[kind](channels, height, width, outputs, depth)
        return critic if read_as == "map" else nn.Sequential(_as_map(read_as), *critic)
    if kind == "paper-imagenet":
        raise CriticError(
            f"A 'paper-imagenet' critic cannot read a tensor of shape {tuple(hidden.shape)} ({read_as}); choose slim, "
            f"residual or paper, or cut where a map (B, C, H, W) crosses."
        )
    if read_as.startswith("tokens"):
        return _tokens(kind, hidden.shape[-1], outputs, depth, read_as == "tokens with a class token")
    return _linear(hidden.shape[-1], outputs, depth)


def multiply_adds(
    kind: CriticKind, hidden: Tensor, outputs: int, depth: int | None, read_as: Layout, budget: float
) -> int | None:
    """Return the multiply-adds per sample of a critic that follows its budget, None where it has no use for one."""
    if kind != "residual" or read_as not in MAPS:
        return None
    return _plan(hidden, outputs, depth, read_as, budget).multiply_adds


def _plan(hidden: Tensor, outputs: int, depth: int | None, read_as: Layout, budget: float | None) -> ResidualPlan:
    return plan(_map_shape(hidden, read_as), outputs, depth, budget)


def _map_shape(hidden: Tensor, read_as: Layout) -> tuple[int, ...]:
    """Return (C, H, W) of a map, whichever axes it has where; a signal is one of width 1, a volume (C, D, H, W)."""
    first, second, *rest = hidden.shape[1:]
    if read_as == "volume":
        return tuple(hidden.shape[1:])
    if read_as == "signal":
        return first, second, 1
    return (first, second, rest[0]) if read_as == "map" else (rest[0], first, second)


def _as_map(read_as: Layout) -> nn.Module:
    """Return what makes a map (B, C, H, W) of a map with channels last, or of a signal."""
    return nn.Unflatten(2, (-1, 1)) if read_as == "signal" else Permute([0, 3, 1, 2])


class ReadTokens(nn.Module):
    """The mean of all tokens, (B, T, C) to (B, C); with a class token, the two concatenated, (B, 2C)."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1)
        return torch.cat([x[:, 0], mean], dim=1) if self.class_token else mean


def _tokens(kind: CriticKind, channels: int, outputs: int, depth: int, class_token: bool) -> nn.Sequential:
    features = 2 * channels if class_token else channels
    norm = [] if kind == "paper" else [nn.LayerNorm(channels)]
    return nn.Sequential(*norm, ReadTokens(class_token), *_linear(features, outputs, depth))


def _linear(features: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(features, features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(features, outputs))


def _paper(channels: int, height: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, PAPER_WIDTH, 3, padding=1), nn.ReLU()]
        channels = PAPER_WIDTH
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, outputs))


def _paper_imagenet(channels: int, height: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    side = (min(height, POOLED_SIDE), min(width, POOLED_SIDE))
    layers: list[nn.Module] = []
    for _ in range(depth + 1):  # depth 1 is the paper's, which has two
        layers += [nn.Conv2d(channels, PAPER_IMAGENET_WIDTH, 3, padding=1), nn.ReLU()]
        channels = PAPER_IMAGENET_WIDTH
    layers += [nn.Conv2d(channels, 1, 3, padding=1), nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(side[0] * side[1], outputs))


def _slim(channels: int, height: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    inner = min(SLIM_MAX_WIDTH, max(SLIM_MIN_WIDTH, channels // 2))
    stride = max(1, -(-min(height, width) // POOLED_SIDE))
    layers: list[nn.Module] = [nn.AvgPool2d(stride)] if stride > 1 else []
    layers += [nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, outputs))


MAP_CRITICS: dict[str, Callable[[int, int, int, int, int], nn.Sequential]] = {
    "slim": _slim,
    "paper": _paper,
    "paper-imagenet": _paper_imagenet,
}
