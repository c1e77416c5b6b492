"""The network's own semantics: layer groups train as the network does, or the network is refused with the reason."""

from __future__ import annotations

import copy
import io
import pickle
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anytime_lct.cutting import snapshot
from anytime_lct.cutting.comparison import expect_equal
from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CutRecipe

EXAMPLE = torch.zeros(2, 1, 6, 6)


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = block(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


class Decorated(NoGradient):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class GradientSet(NoGradient):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(False):
            return self.inner(x)


class Half(NoGradient):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float()


class Full(NoGradient):
    """Float32 within a network that trains in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.inner(x.float())


class Frozen(NoGradient):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Stopped(NoGradient):
    def forward(self, x: Tensor) -> Tensor:
        self.inner.eval()
        return self.inner(x)


class Assigned(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(x)


class Copied(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(torch.renorm(self.weight, 2, 0, 0.1))
        return super().forward(x)


class Clamped(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-0.05, 0.05)
        return super().forward(x)


class Skipped(NoGradient):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else x + self.inner(x)


class SkippedByTorch(NoGradient):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) * torch.bernoulli(torch.tensor(0.5)) if self.training else x + self.inner(x)


class Averaging(nn.Module):
    """A buffer that follows its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return self.layer(x - self.mean.view(1, -1, 1, 1))


class AveragingInPlace(Averaging):
    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return self.layer(x - self.mean.view(1, -1, 1, 1))


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class StraightThrough(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


PARTS = {
    "no_grad": NoGradient, "decorator": Decorated, "set_grad_enabled": GradientSet, "autocast": Half,
    "autocast off": Full, "train()": Frozen, "eval() in forward": Stopped,
    "assigned": lambda: Assigned(4, 4, 3, padding=1), "copied": lambda: Copied(4, 4, 3, padding=1),
    "clamped": lambda: Clamped(4, 4, 3, padding=1), "skipped": Skipped,
    "skipped by torch": SkippedByTorch, "buffer": Averaging, "buffer in place": AveragingInPlace,
    "backward": StraightThrough,
}  # fmt: skip


class Repeated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 4, 1, 1)


def chain(part: nn.Module) -> nn.Sequential:
    """The part, three blocks and a classifier."""
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(Repeated(), part, block(4, 4), block(4, 4), block(4, 4), *end)


def steps_of(model: nn.Module, parts, precision: torch.dtype | None = None) -> list:
    """Three steps of SGD; return the outputs, the gradients of each step, and the state at the end."""
    torch.manual_seed(0), random.seed(0)
    start, seen = copy.deepcopy(model.state_dict()), []
    for part in parts:
        part.train()
    for _ in range(3):
        model.zero_grad()
        x = torch.randn(5, 1, 6, 6)
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            for part in parts:
                x = part(x)
        x.square().mean().backward()
        seen += [x.detach(), *(None if p.grad is None else p.grad.clone() for p in model.parameters())]
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
    seen += [value.clone() for value in model.state_dict().values()]
    model.load_state_dict(start)
    return seen


def same(a, b) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_does_more_than_its_operations_say_survives_the_cut(name):
    torch.manual_seed(1)
    model = chain(PARTS[name]())
    network = LCTNetwork.cut(model, EXAMPLE, CutRecipe(places=("2", "3")))
    precision = torch.bfloat16 if name == "autocast off" else None
    assert same(steps_of(model, [model], precision), steps_of(model, network.groups, precision))


def test_what_a_network_freezes_stays_and_what_it_bounds_is_bounded():
    frozen = chain(NoGradient())
    steps_of(frozen, LCTNetwork.cut(frozen, EXAMPLE, CutRecipe(places=("2",))).groups)
    assert all(p.grad is None for p in frozen[:2].parameters())
    assert all(p.grad is not None for p in frozen[2:].parameters())
    stopped = chain(Frozen())
    before = copy.deepcopy(stopped[1].inner[1].state_dict())
    network = LCTNetwork.cut(stopped, EXAMPLE, CutRecipe(places=("2",))).train()
    network.groups[1](network.groups[0](torch.randn(5, 1, 6, 6)))
    assert all(torch.equal(before[key], value) for key, value in stopped[1].inner[1].state_dict().items())
    bounded = chain(Assigned(4, 4, 3, padding=1))
    network = LCTNetwork.cut(bounded, EXAMPLE, CutRecipe(places=("2",)))
    network(torch.randn(5, 1, 6, 6))
    assert bounded[1].weight.flatten(1).norm(dim=1).max() < 0.1001


class Top(nn.Module):
    """The same at the network's own level, which no part holds."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = block(1, 4), block(4, 4), block(4, 4)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "no_grad":
            with torch.no_grad():
                x = self.a(x)
        elif self.way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = self.a(x).float()
        else:
            x = self.a(x)
        if self.way == "assignment":
            self.fc.weight.data = self.fc.weight.data * 0.9
        if not (self.way == "random" and self.training and random.random() < 0.5):
            x = self.b(x)
        x = self.c(x.detach() if self.way == "detach" else x)
        return self.fc(self.pool(x.float()).flatten(1))

    def train(self, mode: bool = True) -> Top:
        super().train(mode)
        if self.way == "train()":
            self.a[1].eval()
        return self


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("no_grad", r"gradient or autocast mode at .*x = self.a\(x\)"),
        ("autocast", "gradient or autocast mode"),
        ("assignment", "assigns to data of a tensor"),
        ("random", "draws random numbers"),
        ("train()", r"the mode of 'a\.1' differs.*Top.forward and Top.train .*submodule.*method bp"),
    ],
)
def test_what_the_network_itself_does_is_refused_or_left_uncut(way, says):
    model = Top(way)
    with pytest.raises(PartitionError, match=says):
        LCTNetwork.cut(model, EXAMPLE, CutRecipe(groups=3))
    with pytest.raises(PartitionError, match="do not compute what the network does" if way != "train()" else says):
        LCTNetwork.cut(model, EXAMPLE, CutRecipe(places=("b",)))
    assert LCTNetwork.cut(model, EXAMPLE, CutRecipe(groups=1)).groups[0] is model


def test_a_group_that_the_network_does_not_train_is_refused():
    network = LCTNetwork.cut(Top("detach"), EXAMPLE, CutRecipe(places=("c",)))
    assert network.num_groups == 2
    with pytest.raises(PartitionError, match="Layer group 1 of the places b trains no weights"):
        LCTNetwork.cut(Top("detach"), EXAMPLE, CutRecipe(places=("b",)))


def test_a_network_that_cannot_be_trained_says_so():
    class Tuple(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
            return (super().forward(x), x) if self.training else super().forward(x)

    with pytest.raises(PartitionError, match=r"cannot run a training step.*returns a tuple"):
        model = Tuple(block(1, 4), nn.Flatten(), nn.Linear(144, 3))
        expect_equal(model, list(model), ["0"], EXAMPLE)


class Remembering(nn.Module):
    """Attributes that forward sets, of tensors and numbers of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.calls = block(1, 4), block(4, 4), []
        self.last: Tensor | None = None
        self.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.rows = x.shape[0]
        self.last = self.b(self.a(x))
        self.calls.append(self.rows)
        return self.end(self.last)


def test_no_attribute_keeps_a_value_of_the_recording():
    model = Remembering()
    before = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    Trace.of(model)
    assert {key: value for key, value in vars(model).items() if not key.startswith("_")} == before
    assert model.calls == []
    torch.save(model, io.BytesIO())


def test_a_value_that_lasts_from_pass_to_pass_is_refused():
    class Counting(Remembering):
        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(0)
            return self.end(self.b(self.a(x)) + len(self.calls))

    with pytest.raises(PartitionError, match="the output after a training step differs"):
        LCTNetwork.cut(Counting(), EXAMPLE, CutRecipe(places=("a",)))


def test_the_comparison_changes_nothing():
    torch.manual_seed(0)
    model = chain(Skipped())
    model[1].eval()
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    modes, positions = [m.training for m in model.modules()], snapshot.random_positions()
    network = LCTNetwork.cut(model, EXAMPLE, CutRecipe(places=("2", "3")))
    expect_equal(model, network.groups, network.places, EXAMPLE)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(old, p.grad) for old, p in zip(gradients, model.parameters(), strict=True))
    assert [m.training for m in model.modules()] == modes
    torch.manual_seed(5), random.seed(5)
    positions = snapshot.random_positions()
    expect_equal(model, network.groups, network.places, EXAMPLE)
    assert snapshot.random_positions() == positions


class Unsteady(nn.Module):
    """Noise that no seed sets, as a kernel's order of sums makes."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.draw, self.scale = random.SystemRandom(), scale

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] < 1:  # not followed by fx
            return x
        return x * (1 + self.scale * self.draw.random())

    def __deepcopy__(self, memo) -> Unsteady:
        return Unsteady(self.scale)


def test_only_what_differs_between_two_runs_of_the_network_may_differ():
    model = nn.Sequential(nn.Linear(4, 4), Unsteady(1e-5), nn.Linear(4, 3))
    LCTNetwork.cut(model, torch.zeros(2, 4), CutRecipe(places=("1",)))
    groups = cut_groups(Trace.of(model), ["1"])
    with pytest.raises(PartitionError, match="the output in training differs"):
        expect_equal(model, [*groups, Scaled(1.01)], ["1"], torch.zeros(2, 4))


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Checkpointed(Top):
    """Activation checkpointing updates the statistics of a norm again in the backward pass; groups do not."""

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.c, checkpoint(self.b, self.a(x), use_reentrant=False), use_reentrant=False)
        return self.fc(self.pool(x).flatten(1))


def test_a_network_with_activation_checkpointing_is_cut():
    assert LCTNetwork.cut(Checkpointed(""), EXAMPLE, CutRecipe(places=("a", "b"))).num_groups == 3


class Named(nn.Module):
    """Parts with the names of what fx.GraphModule, or a group here, might call its own."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.code, self.paths = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.meta = nn.Parameter(torch.ones(4))
        self.register_buffer("places", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.paths(self.code(self.graph(x).relu() * self.meta + self.places).relu())


class NamedUnfollowed(Named):
    def __init__(self) -> None:
        super().__init__()
        del self.meta, self.places

    def forward(self, x: Tensor) -> Tensor:
        return self.paths(self.code(self.graph(x))) if x.shape[0] > 0 else x


@pytest.mark.parametrize(("model", "places"), [(Named(), ("relu", "relu_1")), (NamedUnfollowed(), ("graph", "code"))])
def test_parts_may_have_any_name_and_groups_can_be_copied_and_saved(model, places):
    network = LCTNetwork.cut(model, torch.zeros(2, 4), CutRecipe(places=places))
    x = torch.randn(3, 4)
    for groups in (network.groups, copy.deepcopy(network.groups), pickle.loads(pickle.dumps(network.groups))):
        h = x
        for group in groups:
            h = group(h)
        assert torch.equal(h, model(x))
        assert sorted(key for group in groups for key in group.state_dict()) == sorted(model.state_dict())


class Attended(nn.Module):
    """A learned query, which a module reads before it attends to the map."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.way = block(1, 4), block(4, 4), block(4, 8), way
        self.query, self.norm = nn.Parameter(torch.randn(1, 1, 8)), nn.LayerNorm(8)
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = self.norm(self.query) if self.way == "early" else self.query
        if self.way == "early":
            query = query.expand(x.shape[0], -1, -1)
        h = self.c(self.b(self.a(x))).flatten(2).transpose(1, 2)
        if self.way != "early":
            query = query.repeat(h.shape[0], 1, 1) if self.way == "repeat" else query.expand(h.shape[0], -1, -1)
        return self.fc(self.attention(query, h, h)[0][:, 0])


@pytest.mark.parametrize("way", ["early", "repeat", "expand"])
def test_learned_queries_cross_no_cut(way):
    network = LCTNetwork.cut(Attended(way), EXAMPLE, CutRecipe(groups=3))
    assert network.places == ("a", "b") or network.num_groups == 3
    assert [cut.name for cut in Trace.of(Attended(way)).candidates][:2] == ["a", "b"]


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_weights_computed_in_forward_are_weights():
    """A network of such convolutions has the candidates of one of torch's own, as these are layers."""

    def of(kind: type[nn.Conv2d]) -> nn.Module:
        layers = [nn.Sequential(kind(1 if k == 0 else 4, 4, 3, padding=1), nn.ReLU()) for k in range(4)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    candidates = [[cut.name for cut in Trace.of(of(kind)).candidates] for kind in (nn.Conv2d, Standardised)]
    assert candidates[0] == candidates[1] == ["0", "1", "2", "5"]
    assert LCTNetwork.cut(of(Standardised), EXAMPLE, CutRecipe(groups=4)).num_groups == 4


def test_every_recording_of_a_network_has_the_same_steps():
    model = chain(Skipped())
    names = set()
    for seed in range(10):
        random.seed(seed)
        names.add(tuple(cut.name for cut in Trace.of(model).candidates))
    assert names == {("1", "2", "3", "6")}


def test_a_part_whose_train_is_its_own_is_named_where_it_leaves_too_few_places():
    with pytest.raises(PartitionError, match=r"'0' is one step, as its train\(\) is its own"):
        LCTNetwork.cut(
            nn.Sequential(Frozen(), nn.Flatten(), nn.Linear(144, 3)), torch.zeros(2, 4, 6, 6), CutRecipe(groups=4)
        )
    frozen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    frozen[0].requires_grad_(False)
    with pytest.raises(PartitionError, match="2 of its weight tensors are frozen"):
        LCTNetwork.cut(frozen, torch.zeros(2, 4), CutRecipe(groups=2))
