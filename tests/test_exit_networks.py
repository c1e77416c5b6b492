"""The networks made for exits: sizes by hand, scales in one tensor, which exit trains what, drop-path, refusals."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from bundles import make_profile
from exporting import export
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct import lct
from anytime_lct.counting import count, count_in_turn
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import ModelError
from anytime_lct.models import networks
from anytime_lct.models.fractalnet import ALL, FractalNet, join_weights
from anytime_lct.models.msdnet import MSDNet, fold, unfold
from anytime_lct.network import LCTNetwork
from anytime_lct.task import Facts

IMAGES = Facts("squares", "classification", (1, 8, 8), 3, ("a", "b", "c"), (0.5,), (0.25,))
TINY = {"width": [4, 5, 6], "growth": [2, 4, 4], "bottleneck": [1, 2, 2]}


def loss(Z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(Z, y, reduction="none")


def msdnet(**options: object) -> MSDNet:
    torch.manual_seed(0)
    network = networks.build("msdnet", IMAGES.input_shape, IMAGES.outputs, **{**TINY, **options})
    assert isinstance(network, MSDNet)
    return network


def cut(network: MSDNet) -> LCTNetwork:
    """Cut behind every block, the default, with the network's own classifiers as critics."""
    return LCTNetwork.cut(network, torch.zeros(2, 1, 8, 8), compare=False)


def test_earlywide_costs_what_its_convolutions_do_and_is_cut_behind_every_block():
    network = networks.build("earlywide", (3, 32, 32), 10)
    stem, half, quarter = 3 * 9 * 16 * 32**2, 9 * 16**2, 9 * 8**2
    first = (16 * 40 + 40 * 40) * half + 16 * 40 * 16**2
    second = (40 * 80 + 80 * 80) * quarter + 40 * 80 * 8**2
    rest = 4 * 80 * 80 * quarter + 80 * 10
    assert count(network, torch.zeros(1, 3, 32, 32)).flops == stem + first + second + rest == 26_247_968
    names = [cut.name for cut in Trace.of(network).candidates]
    assert names[:4] == ["relu", "layer1", "layer2.0", "layer2.1"]


@pytest.mark.parametrize(("side", "stride", "last"), [(8, 1, 2), (28, 1, 7), (64, 2, 8), (96, 4, 6), (224, 8, 7)])
def test_earlywide_brings_images_of_any_size_to_about_8x8(side, stride, last):
    network = networks.build("earlywide", (1, side, side), 7, width=2, blocks=[1, 1])
    x = network.conv1(torch.zeros(2, 1, side, side))
    assert network.conv1.stride == (stride, stride)
    assert network.layer2(network.layer1(x)).shape[2:] == (last, last)
    assert network(torch.zeros(2, 1, side, side)).shape == (2, 7)


def test_maps_of_several_scales_are_one_tensor_and_come_back():
    maps = {2: torch.randn(2, 3, 2, 5), 1: torch.randn(2, 1, 4, 10), 0: torch.randn(2, 2, 8, 20)}
    x = fold(maps)
    assert x.shape == (2, 3 + 4 + 32, 2, 5) and torch.equal(x[:, :3], maps[2])
    back = unfold(x, {2: 3, 1: 1, 0: 2})
    assert list(back) == [2, 1, 0] and all(torch.equal(back[scale], maps[scale]) for scale in maps)


def layer_by_layer(network: MSDNet, heads: list[nn.Module], x: Tensor, layers: list[int]) -> list[Tensor]:
    """Compute every scale of every layer in turn, as the paper draws them, with the weights of a folded network."""
    cells = {name: cell for block in network.blocks for name, cell in block.cells.items()}
    maps = list(accumulate(network.stem.scales, lambda map, convolution: convolution(map), initial=x))[1:]
    outputs: list[Tensor] = []
    for layer in range(1, sum(layers) + 1):
        before = list(maps)
        for scale in range(len(maps)):
            if cell := cells.get(f"layer{layer}_scale{scale}"):
                strided = [] if cell.finer is None else [cell.finer(before[scale - 1])]
                maps[scale] = torch.cat([before[scale], *strided, cell.own(before[scale])], dim=1)
                maps[scale] = maps[scale] if cell.transition is None else cell.transition(maps[scale])
        if layer in accumulate(layers):
            head = heads[len(outputs)]
            outputs.append(head.fc(head.convolutions(maps[-1]).mean(dim=(2, 3))))
    return outputs


@pytest.mark.parametrize("options", [{"layers": [2, 1, 3]}, {"layers": [1, 4, 1], "prune": "min"}])
def test_the_chain_of_folded_blocks_is_the_multi_scale_network(options):
    network = msdnet(**options)
    split = cut(network).eval()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = layer_by_layer(network, [*split.critics, network.classifier], x, options["layers"])
        for Z, Z_expected in zip(split(x), expected, strict=True):
            torch.testing.assert_close(Z, Z_expected)
        torch.testing.assert_close(network(x), expected[-1])


@pytest.mark.parametrize("prune", ["max", "min"])
def test_every_weight_of_a_block_learns_from_the_exit_behind_it(prune):
    split = cut(msdnet(layers=[2, 2, 3], prune=prune))
    before = {name: value.clone() for name, value in split.state_dict().items() if "running" not in name}
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    rule = lct.Rule(critic_loss="cross-entropy")
    losses = []
    for group, critic in zip(split.groups, [*split.critics, None], strict=True):
        losses.append(lct.descend(group, critic, x, y, loss, rule))
        x = losses[-1].h
    for local_loss, after in pairwise(losses):
        local_loss.learn(after.L)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in split.parameters())
    torch.optim.SGD(split.parameters(), lr=0.1).step()
    assert not any(torch.equal(p, before[name]) for name, p in split.named_parameters())


def test_msdnet_saves_resumes_and_answers_as_a_bundle(tmp_path: Path):
    sizes = {"layers": [1, 1], "width": [4, 5], "growth": [2, 4], "bottleneck": [1, 2]}
    split = cut(msdnet(**sizes))
    for norm in (module for module in split.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    again = cut(msdnet(**sizes))
    again.load(split.main_state(), split.critics_state())
    x = torch.randn(2, 1, 8, 8)
    assert all(map(torch.equal, again.eval()(x), split.eval()(x)))
    profile = make_profile([0.5, 0.6], groups=[10, 10], critics=[1])
    bundle = export(split, IMAGES, profile, tmp_path / "bundle", model_name="msdnet", only="groups")
    assert 0 < bundle.manifest.largest_difference <= 1e-4


def test_msdnet_costs_what_its_convolutions_do_and_about_what_the_paper_states():
    network = networks.build("msdnet", (3, 32, 32), 10)
    assert isinstance(network, MSDNet)
    parts = [nn.Sequential(network.stem, network.blocks[0]), *list(network.blocks)[1:]]
    amounts, crossing = count_in_turn(parts, torch.zeros(2, 3, 32, 32))
    heads = [*map(network.exit_head, network.exit_places), network.classifier]
    exits = [
        total + count(head, hidden[:1]).flops
        for total, head, hidden in zip(accumulate(amounts), heads, crossing, strict=True)
    ]
    stem = (3 * 16 * 32**2 + 16 * 32 * 16**2 + 32 * 64 * 8**2) * 9
    strided = 32 * 24 * 16**2 + 9 * 24 * 12 * 8**2
    own = (64 * 48 + 9 * 48 * 12) * 8**2
    head = 9 * (88 * 128 * 4**2 + 128 * 128 * 2**2) + 128 * 10
    assert exits[0] == stem + strided + own + head == 5_905_664
    assert [round(exit / 1e6, 1) for exit in exits] == [5.9, 10.4, 19.6, 29.8]
    assert network.exit_places == ("blocks.0", "blocks.1", "blocks.2")


def fractalnet(**options: object) -> FractalNet:
    torch.manual_seed(0)
    network = networks.build("fractalnet", IMAGES.input_shape, IMAGES.outputs, width=[3, 4], **options)
    assert isinstance(network, FractalNet)
    return network


def test_a_fractal_block_joins_paths_by_their_mean():
    network = fractalnet(columns=3).eval()
    one, two, three = network.body.blocks[0].columns
    x = torch.randn(2, 1, 8, 8)
    half = (two[0](x) + three[1](three[0](x))) / 2
    whole = (one[0](x) + two[1](half) + three[3](three[2](half))) / 3
    torch.testing.assert_close(network.body.blocks[0](x), whole)
    costs = [count(network.column(c), x[:1]).flops for c in (1, 2, 3)]
    first, later, second = 9 * 3 * 64, 9 * 3 * 3 * 64, 9 * 3 * 4 * 16  # of block 1, within it, of block 2
    within = 9 * 4 * 4 * 16
    assert costs == [first + second + 12 + k * (later + within) for k in (0, 1, 3)]


def test_the_columns_of_the_default_fractal_network_cost_what_the_readme_says():
    network, x = networks.build("fractalnet", (3, 32, 32), 10), torch.zeros(1, 3, 32, 32)
    assert isinstance(network, FractalNet)
    parts = [*(network.column(c) for c in (1, 2, 3)), network]
    assert [round(count(part, x).flops / 1e6, 1) for part in parts] == [2.8, 9.9, 24.0, 36.7]


def test_a_column_alone_is_what_is_left_of_the_network_when_the_others_are_dropped():
    network = fractalnet(columns=3).train()
    x = torch.randn(4, 1, 8, 8)
    for c in (1, 2, 3):
        kept = network.fc(network.body(x, torch.full((4,), c - 1)).mean(dim=(2, 3)))
        torch.testing.assert_close(network.column(c)(x), kept)
    plain = fractalnet(columns=1).eval()
    assert torch.equal(plain(x), plain.column(1)(x))
    with pytest.raises(ModelError, match="a column from 1 to 1"):
        plain.column(2)


def test_drop_path_follows_torchs_random_state_and_keeps_a_path_of_every_join():
    network = fractalnet(columns=3, drop_path=0.9).train()
    x = torch.randn(4, 1, 8, 8)
    outputs: dict[int, Tensor] = {}
    for seed in (0, 1, 0, 1):
        torch.manual_seed(seed)
        Z = network(x)
        assert torch.equal(outputs.setdefault(seed, Z), Z)
    assert not torch.equal(outputs[0], outputs[1])
    kept = torch.tensor([ALL] * 60 + [0] * 2 + [2] * 2)
    weights = join_weights(kept, [1, 2], 0.5)  # a join of the longer two of three columns
    assert torch.equal(weights.sum(dim=1), torch.ones(64)) and weights[60:].tolist() == [[0.5, 0.5]] * 2 + [[0, 1]] * 2
    assert 5 < (weights[:60] == 0.5).all(dim=1).sum() < 25  # a quarter of the joins lose no input
    assert (join_weights(kept, [1, 2], 0.0)[:60] == 0.5).all()
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("earlywide", {"width": 0}, "a width of at least 1 for the network 'earlywide', got 0"),
        ("earlywide", {"blocks": [1, 0]}, r"blocks as a list of 2 whole numbers of at least 1 .*, got \[1, 0\]"),
        ("earlywide", {"blocks": 3}, "blocks as a list of 2 whole numbers"),
        ("earlywide", {"stride": 3}, "a stride of 1, 2, 4, 8, 16 or auto"),
        ("earlywide", {"dropout": 1}, "dropout"),
        ("msdnet", {"layers": []}, r"layers as a list of whole numbers of at least 1 .*, got \[\]"),
        ("msdnet", {"growth": [6, 12]}, "growth as a list of 3 whole numbers"),
        ("msdnet", {"prune": "most"}, "prune max or min"),
        ("fractalnet", {"columns": 0}, "columns of at least 1"),
        ("fractalnet", {"drop_path": 1}, "a drop_path from 0 up to below 1"),
        ("fractalnet", {"width": [1] * 7}, "images of at least 64x64, but the data has 32x32"),
        ("msdnet", {"reduction": 0}, "a reduction above 0 up to 1"),
    ],
)
def test_refusals_say_what_was_expected(name, options, says):
    with pytest.raises(ModelError, match=says):
        networks.build(name, (3, 32, 32), 10, **options)


def test_msdnet_refuses_sides_that_its_scales_do_not_divide_and_places_without_an_exit():
    with pytest.raises(
        ModelError, match=r"3 scales needs images whose sides divide by 4, but the data has 27x28; .*=\[28, 28\]"
    ):
        networks.build("msdnet", (1, 27, 28), 10)
    with pytest.raises(ModelError, match=r"divide by 32, but the data has 100x100; .*=\[96, 96\]"):
        networks.build("msdnet-imagenet", (3, 100, 100), 10)
    with pytest.raises(ModelError, match=r"no exit after 'blocks\.2'; cut after blocks\.0, blocks\.1"):
        msdnet(layers=[1, 1, 1]).exit_head("blocks.2")
