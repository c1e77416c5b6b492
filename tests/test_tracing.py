"""Recording: modes, constants and weights outside modules are followed; what cannot be recorded says why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError


def compose(groups, x):
    for group in groups:
        x = group(x)
    return x


def test_functional_dropout_follows_train_and_eval():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(F.relu(self.a(x)), 0.5 if self.training else 0.1, self.training)
            return self.c(F.dropout(F.relu(self.b(x)), p=0.3, training=self.training))

    model = Dropping()
    groups = cut_groups(Trace.of(model), ["dropout"])
    x = torch.randn(6, 4)
    for mode in (True, False):
        for module in [model, *groups]:
            module.train(mode)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(compose(groups, x), expected)
    assert model.training is False


def test_a_frozen_part_keeps_its_own_mode():
    class Dropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.drop, self.b = nn.Linear(4, 8), Dropping(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.drop(self.a(x)))

    model = Body()
    model.drop.eval()
    groups = cut_groups(Trace.of(model), ["drop"])
    x = torch.randn(3, 4)
    assert model.a.training
    assert not model.drop.training
    assert torch.equal(compose(groups, x), model(x))
    assert not groups[0].get_submodule("drop").training
    assert list(groups[0].state_dict()) == ["a.weight", "a.bias"]


class Odd(nn.Module):
    """Weights and constants outside of modules, a layer under two names, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.randn(9, 4))
        self.register_buffer("mask", torch.ones(4), persistent=False)
        self.plain = torch.randn(4)
        self.a, self.b, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 2)
        self.alias = self.a

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.alias(x) * self.mask) + torch.arange(4.0)
        return self.b(x * self.scale + self.shift[: x.size(0)] * self.mask) * self.plain


def test_weights_and_constants_outside_modules_are_fetched_where_they_are_used():
    model = Odd()
    before = set(vars(model))
    groups = cut_groups(Trace.of(model), ["relu"])
    x = torch.randn(3, 4)
    assert set(vars(model)) == before
    for pieces in (groups, copy.deepcopy(groups)):
        assert torch.equal(compose(pieces, x), model(x))
        assert sorted(k for g in pieces for k in g.state_dict()) == sorted(model.state_dict())
        assert set(pieces[0].state_dict()) == {f"{a}.{k}" for a in ("a", "alias") for k in ("weight", "bias")}
        assert {"scale", "shift", "never.weight"} < set(pieces[1].state_dict())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x * 2 if self.training else x


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(2)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Branching(), r"test_tracing\.py:\d+ \(if x\.sum\(\) > 0:\)"),
        (Auxiliary(), "another path in training"),
        (TwoOutputs(), "returns one tensor"),
        (TwoInputs(), r"one input.*TwoInputs.forward\(x: 'Tensor', y"),
        (Random(), "random numbers"),
    ],
)
def test_networks_that_cannot_be_cut_say_why(model, says):
    with pytest.raises(PartitionError, match=says):
        Trace.of(model)
