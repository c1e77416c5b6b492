"""The paper's networks: sizes from its tables, shapes, names, and clear refusals."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet50

from anytime_lct import models
from anytime_lct.errors import ModelError
from anytime_lct.models.lstm import CarriedLSTM


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "millions"),
    [
        ("resnet50", (3, 32, 32), 10, 23.82),  # Table VIII
        ("resnet50", (3, 32, 32), 100, 26.77),
        ("resnet50", (3, 224, 224), 1000, 25.55),
        ("resnet101", (3, 32, 32), 10, 42.82),  # the true one; the paper's has 42.68
        ("lstm", (150,), 50, 10.43),  # Table X
        ("resnet20", (3, 32, 32), 10, 0.27),
        ("resnet56", (3, 32, 32), 10, 0.85),
    ],
)
def test_parameters_are_those_of_the_tables(name, shape, outputs, millions):
    assert parameters(models.build(name, shape, outputs)) / 1e6 == pytest.approx(millions, abs=0.02)


def test_the_perceptron_is_300_150_10():
    model = models.build("mlp", (1, 28, 28), 10)
    assert parameters(model) == 784 * 300 + 300 + 300 * 150 + 150 + 150 * 10 + 10
    assert models.build("mlp", (1, 8, 8), 10, hidden=[7])(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_the_imagenet_stem_is_torchvisions_own_network():
    assert models.build("resnet50", (3, 224, 224), 1000).state_dict().keys() == resnet50().state_dict().keys()


@pytest.mark.parametrize("depth", [50, 101, 152, 182])
def test_bottleneck_networks_have_the_layers_of_their_name(depth):
    with torch.device("meta"):
        model = models.build(f"resnet{depth}", (3, 32, 32), 10)
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([name for name in layers if "downsample" not in name]) == depth


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (4, 33, 17)])
def test_image_networks_take_any_small_image(shape):
    for name in ("mlp", "resnet20", "resnet50"):
        assert models.build(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_hidden_state_is_carried_only_when_asked():
    torch.manual_seed(0)
    layer = CarriedLSTM(3, 4)
    x = torch.randn(2, 10, 3)
    whole = layer(x)
    torch.testing.assert_close(layer(x), whole, rtol=0, atol=0)
    layer.carry = True
    pieces = torch.cat([layer(x[:, :6]), layer(x[:, 6:])], dim=1)
    torch.testing.assert_close(pieces, whole)
    assert layer(x[:1]).shape == (1, 10, 4)  # another batch size starts from zero
    torch.testing.assert_close(layer.state[0].transpose(0, 1), whole[:1, -1:])
    assert not any("state" in key for key in layer.state_dict())


@pytest.mark.parametrize(
    ("name", "shape", "options", "says"),
    [
        ("resnet5", (3, 32, 32), {}, "did you mean resnet"),
        ("mlp", (1, 8, 8), {"width": 3}, "it takes hidden"),
        ("mlp", (1, 8, 8), {"hidden": [0]}, "at least 1"),
        ("resnet", (1, 8, 8), {"depth": 15}, "6n.2"),
        ("resnet20", (1, 8, 8), {"depth": 14}, "it takes width"),
        ("resnet50", (3, 32, 32), {"stem": "vgg"}, "cifar, imagenet or auto"),
        ("resnet20", (100,), {}, "reads images"),
        ("lstm", (3, 32, 32), {}, "reads text"),
        ("lstm", (10,), {"layers": 0}, "at least 1"),
        ("lstm", (10,), {"dropout": 1.0}, "dropout"),
    ],
)
def test_refusals_say_what_was_expected(name, shape, options, says):
    with pytest.raises(ModelError, match=says):
        models.build(name, shape, 10, **options)
