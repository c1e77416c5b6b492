"""The complexity of the paper's networks, Tables VIII and X.

The FLOPs of Table VIII are twice its parameters in every row, though convolutions use their weights at every
position; so only its parameters are compared. Table X counts two FLOPs a multiply-add.
"""

from __future__ import annotations

import pytest
import torch

from anytime_lct.counting import component_costs
from anytime_lct.exits.profile import Cost
from anytime_lct.models import networks as models
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticKind, CriticRecipe, CutRecipe

PLACES = ("layer1", "layer2", "layer3")

# Millions of parameters: (sub-model, its critic) 1..3, then the main network.
TABLE_VIII = {
    "CIFAR-10": (32, 10, "paper", [(1.82, 1.61), (2.35, 0.92), (9.79, 1.26)], 23.82),
    "CIFAR-100": (32, 100, "paper", [(13.62, 13.40), (5.30, 3.87), (10.53, 2.00)], 26.77),
    "ImageNet": (224, 1000, "paper-imagenet", [(0.47, 0.25), (1.84, 0.40), (9.23, 0.69)], 25.55),
}
# Billions of FLOPs for 128 texts of 150 characters, and millions of parameters.
TABLE_X = [(68, 1.79), (179, 4.67), (290, 7.55), (401, 10.43)]
TABLE_X_CRITIC = (1.15, 0.03)


def resnet50(side: int, outputs: int, critic: CriticKind) -> LCTNetwork:
    model = models.build("resnet50", (3, side, side), outputs)
    return LCTNetwork.cut(model, torch.zeros(2, 3, side, side), CutRecipe(places=PLACES), CriticRecipe(kind=critic))


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("data", TABLE_VIII)
def test_parameters_of_table_viii(data: str):
    side, outputs, critic, sub_models, main = TABLE_VIII[data]
    network = resnet50(side, outputs, critic)
    for i, (sub_model, of_critic) in enumerate(sub_models, start=1):
        assert millions(network.sub_model(i)) == pytest.approx(sub_model, abs=0.02)
        assert millions(network.critics[i - 1]) == pytest.approx(of_critic, abs=0.02)
    assert millions(network.sub_model(4)) == pytest.approx(main, abs=0.02)


def test_true_operations_of_table_viii():
    """The critics' by hand: a 3x3 convolution to 128 channels and a classifier, on maps of 32, 16 and 8."""
    of_groups, of_critics = component_costs(*parts(resnet50(32, 10, "paper")))
    for cost, (channels, side) in zip(of_critics, [(256, 32), (512, 16), (1024, 8)], strict=True):
        assert cost.flops == 9 * channels * 128 * side**2 + 128 * side**2 * 10
    main = sum(cost.flops for cost in of_groups)
    assert main == pytest.approx(1.30e9, rel=0.02)
    assert sum(cost.flops for cost in of_critics) / main == pytest.approx(0.42, abs=0.02)


def test_slim_critics_cost_at_most_a_twentieth():
    of_groups, of_critics = component_costs(*parts(resnet50(32, 10, "slim")))
    assert sum(cost.flops for cost in of_critics) <= 0.05 * sum(cost.flops for cost in of_groups)


def test_table_x():
    model = models.build("lstm", (150,), 50)
    example = torch.zeros(2, 150, dtype=torch.int64)
    places = ("lstm.0", "lstm.1", "lstm.2")
    network = LCTNetwork.cut(
        model, example, CutRecipe(places=places), CriticRecipe(kind="paper"), task="language-model"
    )
    of_groups, of_critics = component_costs(network.groups, network.critics, example[:1])
    nothing = Cost(flops=0, params=0)
    for i, (flops, params) in enumerate(TABLE_X, start=1):
        cost = sum([*of_groups[:i], *of_critics[i - 1 : i]], start=nothing)
        assert cost.flops * 2 * 128 * 150 / 1e9 == pytest.approx(flops, rel=0.005)
        assert cost.params / 1e6 == pytest.approx(params, abs=0.02)
    for cost in of_critics:
        assert cost.flops == 600 * 50 and cost.params == 600 * 50 + 50
        assert cost.flops * 2 * 128 * 150 / 1e9 == pytest.approx(TABLE_X_CRITIC[0], rel=0.005)
        assert cost.params / 1e6 == pytest.approx(TABLE_X_CRITIC[1], abs=0.02)


def parts(network: LCTNetwork) -> tuple[torch.nn.ModuleList, torch.nn.ModuleList, torch.Tensor]:
    return network.groups, network.critics, torch.zeros(1, 3, 32, 32)
