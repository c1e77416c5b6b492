"""Cutting: composed groups are the uncut network, names stay, and what cannot be cut says why."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct import models, partition
from anytime_lct.errors import PartitionError


def compose(groups, x):
    for group in groups:
        x = group(x)
    return x


def names(trace):
    return [cut.name for cut in trace.candidates]


def test_candidates_are_the_ends_of_blocks():
    blocks = ["layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2.2", "layer2"]
    found = names(partition.trace(models.build("resnet50", (3, 32, 32), 10)))
    assert found[:8] == ["maxpool", *blocks]
    assert found[-2:] == ["layer4.1", "flatten"]
    assert names(partition.trace(models.build("mlp", (1, 8, 8), 10))) == ["relu1", "relu2"]
    assert names(partition.trace(models.build("lstm", (9,), 20, layers=3))) == ["lstm.0", "lstm.1", "lstm"]


NETWORKS = [
    "resnet18", "densenet121", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0",
    "regnet_y_400mf", "convnext_tiny", "swin_t", "vit_b_16", "googlenet", "mnasnet0_5",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_composed_groups_equal_the_uncut_network_to_the_bit(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**options)
    trace = partition.trace(model)
    found = names(trace)
    groups = partition.groups(trace, [found[len(found) * k // 4] for k in (1, 2, 3)])
    x = torch.randn(2, 3, 224 if name == "vit_b_16" else 64, 224 if name == "vit_b_16" else 64)
    for module in [model, *groups]:
        module.eval()
    with torch.no_grad():
        assert torch.equal(compose(groups, x), model(x))
    keys = [key for group in groups for key in group.state_dict()]
    assert sorted(keys) == sorted(model.state_dict())
    own = dict(model.named_parameters())
    assert all(own[key] is p for group in groups for key, p in group.named_parameters())


def test_functional_dropout_follows_train_and_eval():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(F.relu(self.a(x)), 0.5 if self.training else 0.1, self.training)
            return self.c(F.dropout(F.relu(self.b(x)), p=0.3, training=self.training))

    model = Dropping()
    groups = partition.groups(partition.trace(model), ["dropout"])
    x = torch.randn(6, 4)
    for mode in (True, False):
        for module in [model, *groups]:
            module.train(mode)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(compose(groups, x), expected)
    assert model.training is False


def test_the_last_place_of_a_module_counts_and_operations_have_names_too():
    trace = partition.trace(models.build("resnet20", (3, 32, 32), 10))
    assert trace.find("layer2.2.relu").position == trace.find("layer2").position
    assert trace.find("flatten").name == "flatten"


def test_constants_and_weights_outside_modules_are_found_again():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.register_buffer("shift", torch.zeros(4))
            self.a, self.b, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)) * self.scale + self.shift)

    model = Odd()
    groups = partition.groups(partition.trace(model), ["relu"])
    x = torch.randn(3, 4)
    assert torch.equal(compose(groups, x), model(x))
    assert sorted(k for g in groups for k in g.state_dict()) == sorted(model.state_dict())
    assert "scale" in groups[1].state_dict()
    assert "never.weight" in groups[1].state_dict()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class OneNormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(torch.relu(self.norm(self.a(x)))))


@pytest.mark.parametrize(("model", "says"), [(Tied(), "'a.weight'.*'b.weight'"), (OneNormTwice(), "norm.weight")])
def test_weights_tied_across_a_cut_are_refused(model, says):
    with pytest.raises(PartitionError, match=says):
        partition.groups(partition.trace(model), ["relu"])


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


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Branching(), r"test_partition.py, line \d+ \(if x.sum\(\) > 0:\)"),
        (Auxiliary(), "another path in training"),
        (TwoOutputs(), "returns one tensor"),
        (TwoInputs(), "one input"),
    ],
)
def test_networks_that_cannot_be_cut_say_why(model, says):
    with pytest.raises(PartitionError, match=says):
        partition.trace(model)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (["layer9"], "did you mean layer"),
        (["layer1.0.bn1"], "not one tensor crosses"),
        (["bn1"], "not one tensor"),  # what follows would overwrite the tensor in place
        (["layer2", "layer1"], "order of execution"),
        (["layer1", "layer1"], "each once"),
        (["avgpool", "flatten"], "no weights"),
    ],
)
def test_unknown_and_impossible_places_are_refused(places, says):
    with pytest.raises(PartitionError, match=says):
        partition.groups(partition.trace(models.build("resnet20", (3, 32, 32), 10)), places)
