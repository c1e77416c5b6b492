"""Networks of torchvision and timm, the cheap ones of each family: cut in 2 and 4, equal to the bit, names unchanged.

`benchmarks/networks.py` tries more of them, and trains and exports them too.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace

# Beside those of test_partition.py.
TORCHVISION = [
    "alexnet",
    "mobilenet_v2",
    "regnet_x_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "swin_v2_t",
]
TIMM = [
    "convnextv2_atto", "deit_tiny_patch16_224", "edgenext_xx_small", "efficientnet_lite0", "fastvit_t8", "ghostnet_050",
    "levit_128s", "mixer_s32_224", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobilevit_xxs", "poolformer_s12",
    "regnety_002", "repvgg_a0", "resnet26t", "starnet_s1", "tf_efficientnetv2_b0", "tiny_vit_5m_224",
]  # fmt: skip
SIDE = {"mixer_s32_224": 224, "levit_128s": 224, "deit_tiny_patch16_224": 224}


@pytest.mark.parametrize("name", [*(f"torchvision:{n}" for n in TORCHVISION), *(f"timm:{n}" for n in TIMM)])
def test_groups_are_the_uncut_network(name):
    source, _, rest = name.partition(":")
    side = SIDE.get(rest, 64)
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = (
            torchvision.models.get_model(rest, num_classes=10)
            if source == "torchvision"
            else timm.create_model(rest, num_classes=10)
        )
    model.eval()
    trace, x = Trace.of(model), torch.randn(2, 3, side, side)
    names = [cut.name for cut in trace.candidates]
    with torch.no_grad():
        expected = model(x)
        for count in (2, 4):
            places = [names[len(names) * k // count] for k in range(1, count)]
            groups, h = cut_groups(trace, places), x
            for group in groups:
                h = group(h)
            assert torch.equal(h, expected)
            parameters = {key: p for group in groups for key, p in group.named_parameters()}
            assert all(parameters[key] is p for key, p in model.named_parameters())
            assert sorted(key for group in groups for key in group.state_dict()) == sorted(model.state_dict())
