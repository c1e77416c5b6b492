"""LCTNetwork: layer groups f_1..f_N and local critics c_1..c_{N-1}, and the sub-models that they form.

x -> f_1 -> f_2 -> ... -> f_N -> Z_N          sub-model i = f_1..f_i + c_i
      |      |                                sub-model N = the main network
     c_1    c_2
      |      |
     Z_1    Z_2
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anytime_lct.counting import count_in_turn
from anytime_lct.critics import kinds
from anytime_lct.critics.places import choose_places, kind_of, outputs_of, own_critic
from anytime_lct.cutting.comparison import expect_equal
from anytime_lct.cutting.groups import cut_children, cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import CheckpointError, CriticError, PartitionError
from anytime_lct.modes import probing
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe
from anytime_lct.task import TaskName

CUT, CRITIC = CutRecipe(), CriticRecipe()


class LCTNetwork(nn.Module):
    """A main network cut into N layer groups, with a local critic behind each of the first N-1.

    The groups run the network's own submodules: they share its parameters and keep their names, so `main_state()`
    loads straight into the uncut network. `places` names the modules after which it is cut, `shapes` are the
    shapes of h_1..h_{N-1}, without the batch. `recipes` are those that cut it, with the places: they cut another
    network of the same factory alike; None for groups and critics of another origin.
    """

    def __init__(
        self,
        groups: Sequence[nn.Module],
        critics: Sequence[nn.Module],
        places: Sequence[str] = (),
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> None:
        super().__init__()
        if len(critics) != len(groups) - 1:
            raise CriticError(
                f"Expected one critic fewer than groups, got {len(groups)} groups and {len(critics)} critics."
            )
        self.groups = nn.ModuleList(groups)
        self.critics = nn.ModuleList(critics)
        self.places, self.shapes = tuple(places), tuple(shapes)
        self.recipes: tuple[CutRecipe, CriticRecipe] | None = None

    @classmethod
    def cut(
        cls,
        model: nn.Module,
        example: Tensor,
        cut: CutRecipe = CUT,
        critic: CriticRecipe = CRITIC,
        task: TaskName = "classification",
        *,
        compare: bool = True,
    ) -> LCTNetwork:
        """Cut a traceable network and put a local critic behind each cut.

        `example` is a small batch (B >= 2) of inputs. `cut` names the places, or the shares of the main network's cost
        that the exits may take (`shares.choose`), or a strategy (`choice.best_cuts`). A network that torch.fx
        cannot follow is cut after its children named in `places`, where they simply run one after another
        (`groups.cut_children`). One group is the network itself; with `compare`, more are compared with it over a
        training step (`comparison.expect_equal`). Raises PartitionError and CriticError.

        >>> network = LCTNetwork.cut(torchvision.models.resnet18(), torch.zeros(2, 3, 64, 64), CutRecipe(groups=3))
        """
        _expect_answers(model)
        outputs = outputs_of(model, example)
        places = cut.places or choose_places(model, example, cut, critic, task)
        groups, hints = _groups(model, example, places)
        depths = kinds.depths(critic, len(places))
        modules, shapes, crossing = [], [], _crossing(groups, example)
        if places and compare:
            expect_equal(model, groups, places, example)
        kind = kind_of(model, critic)
        budgets = _budgets(groups, example, cut, critic) if kind == "residual" else [None] * len(places)
        for place, hidden, depth, hint, budget in zip(places, crossing, depths, hints, budgets, strict=True):
            if kind == "own":
                modules.append(own_critic(model, place, hidden))
            else:
                layout = kinds.layout(hidden, task, square=kinds.is_square(example), **hint)
                modules.append(kinds.build(kind, hidden, outputs, task, depth, layout, budget))
            shapes.append(tuple(hidden.shape[1:]))
        network = cls(groups, modules, places, shapes)
        network.recipes = (CutRecipe(groups=len(groups), places=places, shares=cut.targets(len(groups))), critic)
        return network

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    def sub_model(self, i: int) -> nn.Sequential:
        """Return sub-model i, f_1..f_i + c_i, for i = 1..N; it shares its weights with the network."""
        if not 1 <= i <= self.num_groups:
            raise PartitionError(f"Expected an exit from 1 to {self.num_groups}, got {i}.")
        return nn.Sequential(*self.groups[:i], *self.critics[i - 1 : i])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs [Z_1, .., Z_N] of all exits, each (B, K) or (B, T, K)."""
        outputs = []
        for group, critic in zip(self.groups, self.critics, strict=False):
            x = group(x)
            outputs.append(critic(x))
        return [*outputs, self.groups[-1](x)]

    def main_state(self) -> dict[str, Tensor]:
        """Return the weights of the main network, under the names of the uncut network."""
        return {name: value for group in self.groups for name, value in group.state_dict().items()}

    def critics_state(self) -> dict[str, Tensor]:
        """Return the weights of the critics, as `critic_1.<name>`."""
        return {
            f"critic_{i}.{name}": value
            for i, critic in enumerate(self.critics, start=1)
            for name, value in critic.state_dict().items()
        }

    def load(self, main: dict[str, Tensor], critics: dict[str, Tensor]) -> None:
        """Load weights as `main_state` and `critics_state` return them; raises CheckpointError on any mismatch."""
        _copy("main network", self.main_state(), main)
        _copy("critics", self.critics_state(), critics)


def _groups(
    model: nn.Module, example: Tensor, places: Sequence[str]
) -> tuple[Sequence[nn.Module], list[dict[str, bool]]]:
    """Return the groups between the cuts, and hints about the tensor that crosses each cut (`kinds.layout`)."""
    if odd := next((name for name, value in model.state_dict().items() if not isinstance(value, Tensor)), None):
        raise PartitionError(f"The state '{odd}' of the network is no tensor and belongs to no group.")
    if not places:
        return [model], []
    try:
        trace = Trace.of(model, example)
    except PartitionError:
        return cut_children(model, places), [{} for _ in places]
    return cut_groups(trace, places), [trace.hints(place) for place in places]


def _budgets(groups: Sequence[nn.Module], example: Tensor, cut: CutRecipe, critic: CriticRecipe) -> list[float]:
    """Return the largest multiply-adds of each critic: what its exit's share leaves, or its share of what follows."""
    amounts, _ = count_in_turn(groups, example)
    *trunks, whole = accumulate(amounts)
    targets = cut.targets(len(groups))
    if not targets:
        return [critic.budget * (whole - trunk) for trunk in trunks]
    limits = [share * whole if share < 1 else share for share in targets]
    return [limit - trunk for limit, trunk in zip(limits, trunks, strict=True)]


def _crossing(groups: Sequence[nn.Module], example: Tensor) -> list[Tensor]:
    """Return h_1..h_{N-1} of an example; raises PartitionError if one is no tensor, or is overwritten later."""
    crossing, hidden = [], example
    for number, group in enumerate(groups, start=1):
        before, version = hidden, hidden._version
        try:
            with probing(group):
                hidden = group(hidden)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise PartitionError(
                f"Layer group {number} cannot read a tensor of shape {tuple(hidden.shape)}: {reason}; so the groups do "
                f"not compute what the network does; cut elsewhere."
            ) from error
        if before._version != version and number > 1:
            raise PartitionError(
                f"Layer group {number} overwrites its input, which the critic before it reads too; cut elsewhere, "
                f"or let the network write into new tensors."
            )
        if not isinstance(hidden, Tensor):
            raise PartitionError(
                f"Expected one tensor behind layer group {number}, got a {type(hidden).__name__}; cut elsewhere."
            )
        if hidden.shape[:1] != example.shape[:1]:
            second = hidden.shape[1:2] == example.shape[:1]
            remedy = "build its layers with batch_first=True, or cut elsewhere" if second else "cut elsewhere"
            raise PartitionError(
                f"Expected the batch, {len(example)}, as the first size of the output of layer group {number}, got a "
                f"tensor of shape {tuple(hidden.shape)}; {remedy}."
            )
        crossing.append(hidden)
    return crossing[:-1]


def _expect_answers(model: nn.Module) -> None:
    """Raise PartitionError for layers whose answers depend on the batch, or that ONNX does not have."""
    for path, layer in model.named_modules():
        problem = ""
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            problem = "running statistics, without which an answer depends on its batch: track_running_stats=True"
        elif isinstance(layer, nn.LSTM) and layer.proj_size:
            problem = "no projection, which ONNX lacks: proj_size=0, with a linear layer behind it"
        if problem:
            raise PartitionError(f"Expected the layer '{path}' ({type(layer).__name__}) to have {problem}.")


def _copy(what: str, own: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    if odd := sorted(own.keys() ^ loaded.keys()):
        side = "missing" if odd[0] in own else "unknown"
        raise CheckpointError(
            f"The weights do not belong to the {what} of this run: '{odd[0]}' is {side} ({len(odd)} such names)."
        )
    for name, value in loaded.items():
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"The weights do not belong to the {what} of this run: '{name}' has shape {tuple(value.shape)}, "
                f"expected {tuple(own[name].shape)}."
            )
    with torch.no_grad():
        for name, value in loaded.items():
            own[name].copy_(value)
