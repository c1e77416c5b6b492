"""Networks of other makes: what fx cannot follow runs whole, tokens and channels-last maps have critics, fallbacks."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Permute

from anytime_lct.critics import kinds
from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import CriticError, PartitionError
from anytime_lct.models import networks as models
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CutRecipe


def outcome(run, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    for part in run:
        x = part(x)
    return x


class ByShape(nn.Module):
    """Control flow that depends on the shape of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            return self.layer(x)
        return -self.layer(x)


class ByMode(ByShape):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5) if self.training else self.layer(x)


class InPlace(ByShape):
    def forward(self, x: Tensor) -> Tensor:
        x += 1 if x.shape[0] > 1 else 2
        return self.layer(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(ByShape, r"control flow at .*test_any_network\.py:\d+ \(if x\.shape"), (ByMode, "another path")],
)
def test_a_module_that_fx_cannot_follow_is_one_step(kind, reason):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), kind(), kind(), nn.Linear(4, 3))
    trace = Trace.of(model)
    assert [cut.name for cut in trace.candidates] == ["1", "2", "3"]
    assert set(trace.recording.whole) == {"2", "3"}
    assert re.search(reason, trace.recording.whole["2"])
    groups = cut_groups(trace, ["1", "2"])
    assert sorted(key for group in groups for key in group.state_dict()) == sorted(model.state_dict())
    for mode, rows in ((True, 3), (False, 3), (False, 1)):
        for module in (model, *groups):
            module.train(mode)
        x = torch.randn(rows, 4)
        assert torch.equal(outcome([model], x), outcome(groups, x))


def test_what_a_group_overwrites_unseen_is_found_when_it_runs():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), InPlace(), nn.Linear(4, 3))
    with pytest.raises(PartitionError, match="group 2 overwrites its input"):
        LCTNetwork.cut(model, torch.zeros(2, 4), CutRecipe(places=("1",)))


class Flattening(nn.Module):
    """The batch size of the input, kept until the end, as many networks are written."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.way = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 3), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "size":
            rows = x.size(0)
        elif self.way == "keyword":
            rows = x.size(dim=0)
        elif self.way == "item":
            rows = x.shape[0]
        else:
            rows, _, _, _ = x.shape
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(x.view(rows, -1))


@pytest.mark.parametrize("way", ["size", "keyword", "item", "unpacked"])
def test_the_batch_size_of_the_input_need_not_cross(way):
    model = Flattening(way)
    network = LCTNetwork.cut(model, torch.zeros(2, 1, 8, 8), CutRecipe(groups=3))
    assert network.places == ("relu", "view")
    for rows in (1, 5):
        x = torch.randn(rows, 1, 8, 8)
        assert torch.equal(outcome(network.groups, x), model(x))


def test_what_crosses_begins_with_the_batch():
    class Turned(Flattening):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(self.a(x))).transpose(0, 1).reshape(4, x.shape[0], -1).mean(0).repeat(1, 4))

    with pytest.raises(PartitionError, match=r"Expected the batch, 2, as the first size.*\(4, 2, 16\)"):
        LCTNetwork.cut(Turned("size"), torch.zeros(2, 1, 8, 8), CutRecipe(places=("reshape",)))


@pytest.mark.parametrize(
    ("shape", "linear_next", "expected"),
    [
        ((96, 7, 7), True, "map"),
        ((7, 7, 96), False, "channels-last map"),
        ((64, 64, 64), False, "map"),
        ((64, 64, 64), True, "channels-last map"),
        ((32, 8, 4), False, "map"),
        ((8, 4, 32), True, "channels-last map"),
        ((50, 16), True, "tokens"),
        ((16,), True, "vector"),
    ],
)
def test_what_crosses_is_told_by_shape_and_by_what_follows(shape, linear_next, expected):
    assert kinds.layout(torch.zeros(2, *shape), linear_next=linear_next) == expected


def test_maps_of_images_that_are_not_square_are_told_by_what_follows():
    assert kinds.layout(torch.zeros(2, 16, 16, 32), square=False) == "map"
    assert kinds.layout(torch.zeros(2, 32, 16, 16), square=False, linear_next=True) == "channels-last map"
    network = LCTNetwork.cut(
        models.build("resnet", (3, 16, 32), 10, depth=8), torch.zeros(2, 3, 16, 32), CutRecipe(groups=4)
    )
    assert network.shapes[0] == (16, 16, 32)
    assert not any(isinstance(layer, Permute) for critic in network.critics for layer in critic.modules())


def test_tokens_have_a_class_token_where_the_network_reads_it():
    vit = small_vit()
    trace = Trace.of(vit)
    assert trace.hints("encoder.dropout") == {
        "class_token": True, "linear_next": True, "channels": 16, "convolved": False,
    }  # fmt: skip
    assert not trace.hints("permute")["class_token"]  # before the class token is joined to the others
    network = LCTNetwork.cut(vit, torch.zeros(2, 3, 32, 32), CutRecipe(places=("encoder.layers.encoder_layer_0",)))
    h = torch.randn(3, 5, 16)
    norm, read, linear = network.critics[0]
    normed = norm(h)
    expected = linear(torch.cat([normed[:, 0], normed.mean(1)], dim=1))
    assert torch.equal(network.critics[0](h), expected) and read.class_token


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=10)


@pytest.mark.parametrize(
    ("kind", "depth", "parameters"),
    [
        ("slim", 1, 2 * 12 + 12 * 10 + 10),
        ("paper", 2, 12 * 12 + 12 + 12 * 10 + 10),
        ("residual", 2, 2 * 12 + 12 * 12 + 12 + 12 * 10 + 10),
    ],
)
def test_critics_of_tokens_have_these_sizes(kind, depth, parameters):
    critic = kinds.build(kind, torch.zeros(2, 5, 12), 10, depth=depth)
    assert sum(p.numel() for p in critic.parameters()) == parameters
    assert critic(torch.zeros(2, 5, 12)).shape == (2, 10)


@pytest.mark.parametrize("kind", ["slim", "residual", "paper", "paper-imagenet"])
def test_a_channels_last_map_has_the_critic_of_the_map(kind):
    torch.manual_seed(0)
    critic = kinds.build(kind, torch.zeros(2, 9, 9, 24), 10).eval()
    torch.manual_seed(0)
    of_map = kinds.build(kind, torch.zeros(2, 24, 9, 9), 10).eval()
    x = torch.randn(2, 24, 9, 9)
    torch.testing.assert_close(critic(x.permute(0, 2, 3, 1).contiguous()), of_map(x))


def test_a_critic_for_maps_alone_says_so():
    with pytest.raises(CriticError, match=r"\(2, 5, 12\) \(tokens\).*cut where a map"):
        kinds.build("paper-imagenet", torch.zeros(2, 5, 12), 10)


class Checking(nn.Module):
    """A plain chain of children that fx cannot follow, for it looks at the values of its input."""

    def __init__(self, *layers: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(4, 4), nn.ModuleList(layers), nn.Linear(4, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("expected finite features")
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def blocks() -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(3)]


def test_children_are_cut_by_name_where_fx_cannot_follow():
    model, x = Checking(*blocks()), torch.randn(6, 4)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PartitionError, match=r"test_any_network\.py:\d+ \(if not x\.isfinite.*name places"):
        Trace.of(model)
    network = LCTNetwork.cut(model, torch.zeros(2, 4), CutRecipe(places=("blocks.0", "blocks.2.1")))
    assert [set(group.state_dict()) for group in network.groups] == [
        {k for k in start if k.startswith(("stem", "blocks.0"))},
        {k for k in start if k.startswith(("blocks.1", "blocks.2.0", "blocks.2.1"))},
        {k for k in start if k.startswith("head")},
    ]
    assert all(torch.equal(start[key], value) for key, value in network.main_state().items())
    for mode in (True, False):
        model.train(mode), network.train(mode)
        assert torch.equal(outcome([model], x), outcome(network.groups, x))


@pytest.mark.parametrize(
    ("model", "places", "says"),
    [
        (Checking(*blocks()), ["blocks.7"], "no child 'blocks.7'"),
        (Checking(*blocks()), ["blocks.1", "blocks.0"], "in the order of the network's children"),
        (Checking(*blocks()), ["head"], "not the last"),
        (Checking(*blocks(), scale=2.0), ["blocks.0"], "do not compute what the network does"),
        (Checking(*[nn.Linear(4, 4)] * 2), ["blocks.0"], "tied across a cut"),
    ],
)
def test_children_that_do_not_make_the_network_are_refused(model, places, says):
    with pytest.raises(PartitionError, match=says):
        LCTNetwork.cut(model, torch.zeros(2, 4), CutRecipe(places=tuple(places)))
