"""Cutting: composed groups are the uncut network, names stay, and what cannot be cut says why."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError
from anytime_lct.models import networks as models


def compose(groups, x):
    for group in groups:
        x = group(x)
    return x


def names(trace):
    return [cut.name for cut in trace.candidates]


def test_candidates_are_the_ends_of_blocks():
    blocks = ["layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2.2", "layer2"]
    candidates = names(Trace.of(models.build("resnet50", (3, 32, 32), 10)))
    assert candidates[:8] == ["maxpool", *blocks]
    assert candidates[-2:] == ["layer4.1", "flatten"]
    assert names(Trace.of(models.build("mlp", (1, 8, 8), 10))) == ["relu1", "relu2"]
    assert names(Trace.of(models.build("lstm", (9,), 20, layers=3))) == ["lstm.0", "lstm.1", "lstm"]


def test_candidates_are_found_in_networks_of_other_makes():
    vgg = names(Trace.of(torchvision.models.vgg11()))
    assert vgg[:3] == ["features.2", "features.5", "features.7"]
    assert vgg[-3:] == ["flatten", "classifier.2", "classifier.5"]
    encoder = [f"encoder.layers.encoder_layer_{k}" for k in range(11)]
    assert names(Trace.of(torchvision.models.vit_b_16()))[1:-1] == encoder
    regnet = names(Trace.of(torchvision.models.regnet_y_400mf()))
    assert regnet[1:4] == [
        "trunk_output.block1",
        "trunk_output.block2.block2-0",
        "trunk_output.block2.block2-1",
    ]
    assert names(Trace.of(nn.Sequential(torchvision.models.resnet18())))[:2] == [
        "0.maxpool",
        "0.layer1.0",
    ]


NETWORKS = [
    "resnet18", "resnet50", "vgg11", "densenet121", "mobilenet_v3_small", "squeezenet1_1",
    "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
    "swin_t", "vit_b_16", "googlenet", "mnasnet0_5",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_composed_groups_equal_the_uncut_network_to_the_bit(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    options |= {"image_size": 32} if name == "vit_b_16" else {}
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**options).eval()
    trace = Trace.of(model)
    ends = names(trace)
    x = torch.randn(2, 3, 32 if name == "vit_b_16" else 64, 32 if name == "vit_b_16" else 64)
    with torch.no_grad():
        expected = model(x)
    for places in (
        [ends[len(ends) // 2]],
        [ends[len(ends) * k // 4] for k in (1, 2, 3)],
        ends,
    ):
        groups = cut_groups(trace, places)
        with torch.no_grad():
            assert torch.equal(compose(groups, x), expected)
        keys = [key for group in groups for key in group.state_dict()]
        assert sorted(keys) == sorted(model.state_dict())
        own = dict(model.named_parameters())
        assert all(own[key] is p for group in groups for key, p in group.named_parameters())


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "efficientnet_b0"])
def test_composed_groups_train_as_the_uncut_network_does(name):
    """Batch norm, dropout and stochastic depth included; gradients too, for nothing is detached here."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=7)
    groups = cut_groups(trace := Trace.of(model), names(trace)[1::3])
    x, start = torch.randn(2, 3, 64, 64), {k: v.clone() for k, v in model.state_dict().items()}
    results = []
    for run in (model, lambda x: compose(groups, x)):
        model.load_state_dict(start)
        model.zero_grad()
        torch.manual_seed(1)
        y = run(x)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_resnet_is_cut_after_its_stages():
    model = torchvision.models.resnet50()
    groups = cut_groups(Trace.of(model), ["layer1", "layer2", "layer3"])
    stages = [{key.split(".")[0] for key in group.state_dict()} for group in groups]
    assert stages == [{"conv1", "bn1", "layer1"}, {"layer2"}, {"layer3"}, {"layer4", "fc"}]
    assert {key: v.shape for group in groups for key, v in group.state_dict().items()} == {
        key: v.shape for key, v in model.state_dict().items()
    }


class Unpacked(nn.Module):
    """Layers of torch itself, which return (output, state)."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.first, self.second = layer(4, 6, batch_first=True), layer(6, 6, batch_first=True)
        self.output = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(self.embedding(x))
        return self.output(self.second(x)[0])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_end_where_their_output_leaves_the_tuple(layer):
    model, x = Unpacked(layer), torch.randint(0, 5, (2, 7))
    trace = Trace.of(model)
    assert names(trace) == ["first", "second"]
    assert torch.equal(compose(cut_groups(trace, ["first", "second"]), x), model(x))


class OneReLU(nn.Module):
    """One activation module for all layers, as many networks are written, and an input with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.act(self.a(x))
        if mask is not None:
            x = x * mask
        return self.c(self.act(self.b(x)))


def test_each_call_of_a_module_has_a_place_and_each_group_its_own_mode():
    model = OneReLU()
    trace = Trace.of(model)
    assert names(trace) == ["act@1", "act"]
    first, second, third = cut_groups(trace, names(trace))
    assert [list(g.state_dict()) for g in (first, second, third)] == [
        [f"{name}.weight", f"{name}.bias"] for name in "abc"
    ]
    first.eval()  # leaves the others as they were
    assert second.get_submodule("act").training
    x = torch.randn(2, 4)
    for module in (model, second, third):
        module.eval()
    assert torch.equal(third(second(first(x))), model(x))


def test_what_a_group_reads_is_never_overwritten():
    """The critic reads the same tensor, which writing into a view of it would change."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.relu(torch.flatten(self.a(x), 1)))

    trace = Trace.of(Viewing())
    assert [cut.name for cut in trace.legal] == ["relu"]
    for place in ("a", "flatten"):
        with pytest.raises(PartitionError, match="overwrite the tensor in place"):
            trace.find(place)


def test_the_last_place_of_a_module_counts_and_operations_have_names_too():
    trace = Trace.of(models.build("resnet20", (3, 32, 32), 10))
    assert trace.find("layer2.2.relu").position == trace.find("layer2").position
    assert trace.find("flatten").name == "flatten"


def test_a_frozen_beginning_is_never_a_group_of_its_own():
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(4, 4), nn.PReLU())])
    assert names(Trace.of(model)) == ["1", "3", "5"]
    model[:2].requires_grad_(False)
    assert names(Trace.of(model)) == ["3", "5"]


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
        cut_groups(Trace.of(model), ["relu"])


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (["layer9"], "did you mean layer"),
        (["layer1.0.bn1"], r"2 values cross \(relu, layer1.0.bn1\), not one"),
        (["bn1"], "overwrite the tensor in place"),
        (["fc"], "where it ends"),
        (["layer2", "layer1"], "order of execution"),
        (["layer1", "layer1"], "each once"),
        (["avgpool", "flatten"], "no weights"),
    ],
)
def test_unknown_and_impossible_places_are_refused(places, says):
    with pytest.raises(PartitionError, match=says):
        cut_groups(Trace.of(models.build("resnet20", (3, 32, 32), 10)), places)
