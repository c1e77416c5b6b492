"""The networks made for exits: sizes by hand, where they can be cut, refusals."""

from __future__ import annotations

import pytest
import torch

from anytime_lct.counting import count
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import ModelError
from anytime_lct.models import networks


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


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("earlywide", {"width": 0}, "a width of at least 1 for the network 'earlywide', got 0"),
        ("earlywide", {"blocks": [1, 0]}, r"blocks as 2 whole numbers of at least 1 .*, got \[1, 0\]"),
        ("earlywide", {"blocks": 3}, "blocks as 2 whole numbers"),
        ("earlywide", {"stride": 3}, "a stride of 1, 2, 4, 8, 16 or auto"),
        ("earlywide", {"dropout": 1}, "dropout"),
    ],
)
def test_refusals_say_what_was_expected(name, options, says):
    with pytest.raises(ModelError, match=says):
        networks.build(name, (3, 32, 32), 10, **options)
