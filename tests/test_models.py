"""The paper's networks: sizes from its tables, shapes, names, one tensor between blocks, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torchvision.models import resnet50

from anytime_lct.errors import ModelError
from anytime_lct.models import lstm, networks


class Tracer(fx.Tracer):
    """Keeps recurrent layers whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.RNNBase) or super().is_leaf_module(m, module_qualified_name)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def meta(name: str, shape: tuple[int, ...], outputs: int, **options: object) -> nn.Module:
    """Build without memory or random numbers: for counting."""
    with torch.device("meta"):
        return networks.build(name, shape, outputs, **options)


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "millions"),
    [
        ("resnet50", (3, 32, 32), 10, 23.82),  # Table VIII
        ("resnet50", (3, 32, 32), 100, 26.77),
        ("resnet50", (3, 224, 224), 1000, 25.557),  # torchvision's own page
        ("resnet101", (3, 32, 32), 10, 42.82),  # the true one; the paper's has 42.68
        ("resnet101", (3, 224, 224), 1000, 44.549),
        ("resnet152", (3, 224, 224), 1000, 60.193),
        ("resnet20", (3, 32, 32), 10, 0.27),  # He et al., Table 6; they count 0.46 and 0.85 for 32 and 56
        ("resnet32", (3, 32, 32), 10, 0.46),
        ("resnet56", (3, 32, 32), 10, 0.85),
    ],
)
def test_parameters_are_those_of_the_tables(name, shape, outputs, millions):
    assert parameters(meta(name, shape, outputs)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_character_model_has_the_sizes_of_table_10():
    model = meta("lstm", (150,), 50)
    assert parameters(model) / 1e6 == pytest.approx(10.43, abs=0.02)
    size, critic = parameters(model.embedding), 600 * 50 + 50
    for layer, millions in zip(model.lstm, (1.79, 4.67, 7.55), strict=False):
        size += parameters(layer)
        assert (size + critic) / 1e6 == pytest.approx(millions, abs=0.02)


def test_the_perceptron_is_300_150_10():
    model = networks.build("mlp", (1, 28, 28), 10)
    assert parameters(model) == 784 * 300 + 300 + 300 * 150 + 150 + 150 * 10 + 10
    assert [name for name, _ in model.named_children()] == [
        "flatten", "linear1", "relu1", "linear2", "relu2", "output",
    ]  # fmt: skip
    assert networks.build("mlp", (1, 8, 8), 10, hidden=[7])(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert parameters(networks.build("mlp", (1, 8, 8), 10, hidden=7)) == 64 * 7 + 7 + 7 * 10 + 10


def test_the_imagenet_stem_is_torchvisions_own_network():
    own, theirs = meta("resnet50", (3, 224, 224), 1000), resnet50()
    own.load_state_dict(theirs.state_dict(), assign=True)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x), rtol=0, atol=0)


def test_the_cifar_stem_keeps_torchvisions_names_and_the_maps_resolution():
    own, theirs = meta("resnet50", (3, 32, 32), 10), meta("resnet50", (3, 224, 224), 10)
    assert own.state_dict().keys() == theirs.state_dict().keys()
    other = {n for n, p in own.named_parameters() if p.shape != theirs.get_parameter(n).shape}
    assert other == {"conv1.weight", "fc.weight"}
    assert own.fc.in_features == 2048 * 4 * 4
    assert own.layer1(own.maxpool(own.conv1(torch.zeros(1, 3, 32, 32, device="meta")))).shape[2:] == (32, 32)


@pytest.mark.parametrize("depth", [50, 101, 152, 182])
def test_bottleneck_networks_have_the_layers_of_their_name(depth):
    model = meta(f"resnet{depth}", (3, 32, 32), 10)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in layers if "downsample" not in name]) == depth


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 56])
def test_small_networks_have_the_layers_of_their_name(depth):
    model = meta("resnet", (1, 8, 8), 10, depth=depth, width=3)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in layers if "downsample" not in name]) == depth
    assert [name for name in layers if "downsample" in name] == [
        "layer2.0.downsample.0",
        "layer3.0.downsample.0",
    ]
    names = [name for name, _ in model.named_children() if name != "flatten"]
    assert names == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "fc"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (4, 33, 17)])
def test_image_networks_take_any_small_image(shape):
    for name in ("mlp", "resnet20", "resnet50"):
        assert meta(name, shape, 7)(torch.zeros(2, *shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "options", "blocks"),
    [
        ("mlp", (1, 8, 8), {"hidden": (6, 5)}, ["flatten", "linear1", "relu1", "linear2", "relu2"]),
        (
            "resnet",
            (1, 8, 8),
            {"depth": 14, "width": 4},
            [f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1)],
        ),
        ("resnet50", (1, 8, 8), {}, [f"layer{s + 1}.{b}" for s in range(4) for b in range((3, 4, 6, 3)[s])]),
        ("lstm", (9,), {"layers": 3, "units": 5, "dropout": 0.5}, ["lstm.0", "lstm.1", "lstm.2"]),
    ],
)
def test_networks_trace_with_one_tensor_between_blocks(name, shape, options, blocks):
    torch.manual_seed(0)
    model = networks.build(name, shape, 11, **options).eval()
    x = torch.randint(11, (2, *shape)) if name == "lstm" else torch.randn(2, *shape)
    graph = Tracer().trace(model)
    torch.testing.assert_close(fx.GraphModule(model, graph)(x), model(x), rtol=0, atol=0)
    nodes = [node for node in graph.nodes if node.op != "output"]
    for block in blocks:
        inside = [k for k, n in enumerate(nodes) if any(b == block for b in n.meta.get("nn_module_stack", {}))]
        end = max(inside)
        crossing = [n for n in nodes[: end + 1] if any(user not in nodes[: end + 1] for user in n.users)]
        assert crossing == [nodes[end]], block


def test_hidden_state_is_carried_only_when_asked():
    torch.manual_seed(0)
    layer = lstm.CarriedLSTM(3, 4)
    x = torch.randn(2, 10, 3)
    whole = layer(x)
    torch.testing.assert_close(layer(x), whole, rtol=0, atol=0)
    assert layer.state is None
    layer.carry = True
    pieces = torch.cat([layer(x[:, :6]), layer(x[:, 6:])], dim=1)
    torch.testing.assert_close(pieces, whole)
    assert not layer.state[0].requires_grad and layer.state[1].shape == (1, 2, 4)
    assert layer(x[:1]).shape == (1, 10, 4)  # another batch size starts from zero
    torch.testing.assert_close(layer.state[0].transpose(0, 1), whole[:1, -1:])
    assert not any("state" in key for key in layer.state_dict())


def test_dropout_acts_between_layers_in_training_only():
    plain = networks.build("lstm", (5,), 7, layers=2, units=400, embedding=3)
    with_dropout = networks.build("lstm", (5,), 7, layers=2, units=400, embedding=3, dropout=0.25)
    with_dropout.load_state_dict(plain.state_dict())
    x = torch.randint(7, (4, 5))
    torch.testing.assert_close(with_dropout.eval()(x), plain(x), rtol=0, atol=0)
    hidden = with_dropout.train().embedding(x)
    first, second = (layer(hidden if k == 0 else plain.lstm[0](hidden)) for k, layer in enumerate(with_dropout.lstm))
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    nonzero = first != 0
    torch.testing.assert_close(first[nonzero], (plain.lstm[0](hidden) / 0.75)[nonzero])
    assert (second != 0).all()


@pytest.mark.parametrize(
    ("name", "shape", "options", "says"),
    [
        ("resnet5", (3, 32, 32), {}, "did you mean resnet"),
        ("mlp", (1, 8, 8), {"width": 3}, "it takes hidden"),
        ("lstm", (9,), {"unit": 3}, "did you mean 'units'; it takes layers, units, embedding, dropout"),
        ("mlp", (1, 8, 8), {"hidden": [0]}, "at least 1"),
        ("resnet", (1, 8, 8), {"depth": 15}, "6n.2"),
        ("resnet", (1, 8, 8), {"width": 0}, "width of at least 1"),
        ("resnet20", (1, 8, 8), {"depth": 14}, "it takes width"),
        ("resnet50", (3, 32, 32), {"stem": "vgg"}, "cifar, imagenet or auto"),
        ("resnet50", (3, 31, 40), {"stem": "imagenet"}, "at least 32x32, but the data has 31x40"),
        ("resnet50", (3, 7, 7), {}, "at least 8x8"),
        ("resnet20", (1, 3, 3), {}, "at least 4x4"),
        ("resnet20", (100,), {}, "reads images"),
        ("resnet50", (100,), {}, "reads images"),
        ("mlp", (100,), {}, "reads images"),
        ("lstm", (3, 32, 32), {}, "reads text"),
        ("lstm", (10,), {"layers": 0}, "at least 1"),
        ("lstm", (10,), {"dropout": 1.0}, "dropout"),
    ],
)
def test_refusals_say_what_was_expected(name, shape, options, says):
    with pytest.raises(ModelError, match=says):
        networks.build(name, shape, 10, **options)


def test_a_network_needs_outputs():
    with pytest.raises(ModelError, match="at least one class"):
        networks.build("mlp", (1, 8, 8), 0)
