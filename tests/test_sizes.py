"""Sizes of the inputs are known where a network is cut: control flow goes by them, and they cross no cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError

SHAPE = (3, 18, 18)


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class BySize(Trunk):
    """Every kind of control flow that depends on sizes alone."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x.shape) == 4 and x.shape[1] == 3, "images"
        *_, height, _ = x.shape
        if pad := -height % 4:
            x = F.pad(x, (0, pad, 0, pad))
        x = self.stem(x)
        for number in range(int(x.shape[-1] / 4)):
            x = self.body(x) * float(x.size(2)) + number
        sizes = [size for size in x.shape[1:]]
        return self.head((x + torch.zeros(x.size(0), *sizes)).mean((2, 3)))


class ByBatch(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2 if x.shape[0] == 1 else super().forward(x)


class ByData(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2 if x.mean() > 0 else super().forward(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.map = nn.Linear(4, 4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        rows, _, channels = x.shape
        x = x + self.layer(x)
        return x + self.map(x.transpose(1, 2).reshape(rows, channels, height, width)).flatten(2).transpose(1, 2)


class Tokens(Trunk):
    """Sizes of the map, and the batch's, go beside its tokens to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, height, width)
        return self.head(x.transpose(1, 2).reshape(rows, channels, height, width).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "places"), [(BySize, ["stem"]), (Tokens, ["blocks.0", "blocks.1"])], ids=["flow", "crossing"]
)
def test_groups_compute_what_the_network_does_for_every_batch(kind, places):
    torch.manual_seed(0)
    model, example = kind(), torch.zeros(2, *SHAPE)
    with torch.no_grad():
        trace = Trace.of(model, example)
        assert trace.recording.shape == SHAPE and set(places) <= {cut.name for cut in trace.candidates}
        groups = cut_groups(trace, places)
        assert {key for group in groups for key in group.state_dict()} == set(model.state_dict())
        for rows in (1, 2, 5):
            x = torch.randn(rows, *SHAPE)
            h = x
            for group in groups:
                h = group(h)
            assert torch.equal(h, model(x))
        with pytest.raises(PartitionError, match=r"shape \(3, 18, 18\), for which the network is cut.*\(3, 9, 9\)"):
            groups[0](torch.zeros(2, 3, 9, 9))
        program = torch.export.export(groups[0], (x,), dynamic_shapes={"input": {0: torch.export.Dim("rows")}})
        assert torch.equal(program.module()(x[:3]), groups[0](x[:3]))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ByBatch(), r"control flow at .*x\.shape\[0\] == 1"),
        (ByData(), r"control flow at .*x\.mean"),
    ],
)
def test_what_depends_on_the_batch_or_the_data_stays_unknown(model, says):
    with pytest.raises(PartitionError, match=says):
        Trace.of(model, torch.zeros(2, *SHAPE))


def test_without_an_example_and_for_networks_that_need_none_sizes_stay_open():
    with pytest.raises(PartitionError, match=r"'len' is not supported"):
        Trace.of(BySize())
    assert Trace.of(Trunk(), torch.zeros(2, *SHAPE)).recording.shape is None
    assert torch.zeros is torch._C._VariableFunctions.zeros
