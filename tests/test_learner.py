"""The learner: optimizer steps in any memory layout, and batch norms of short runs and short minibatches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from anytime_lct.recipes.recipe import OptimizerRecipe, ScheduleRecipe, TrainRecipe
from anytime_lct.training.learner import Learner, forward_pass
from anytime_lct.training.schedule import Clock

TRAIN = TrainRecipe(epochs=1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_gradients_in_another_memory_layout_step_the_right_weights(name):
    torch.manual_seed(0)
    critic = nn.Sequential(Permute([0, 3, 1, 2]), nn.Conv2d(6, 5, 3, padding=1))
    h = torch.randn(4, 8, 8, 6)
    weight, bias = critic[1].weight, critic[1].bias
    gradients = torch.autograd.grad(critic(h).pow(2).mean(), [weight, bias])
    assert gradients[0].stride() != weight.stride()
    expected = [(weight - 0.1 * gradients[0]).detach(), (bias - 0.1 * gradients[1]).detach()]
    if name == "adamw":  # the first step is the rate times g / (|g| + eps)
        pairs = zip((weight, bias), gradients, strict=True)
        expected = [(p - 0.1 * g / (g.abs() + 1e-8)).detach() for p, g in pairs]
    learner = Learner(critic, OptimizerRecipe(name=name, lr=0.1, momentum=0.0), ScheduleRecipe(), Clock(1, 1))
    weight.grad, bias.grad = gradients
    learner.step(0)
    for value, reference in zip((weight, bias), expected, strict=True):
        torch.testing.assert_close(value.detach(), reference, atol=1e-5, rtol=1e-5)


def test_the_average_of_weights_counts_later_steps_more_and_stays_beside_them():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    optimizer = OptimizerRecipe(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    learner = Learner(module, optimizer, ScheduleRecipe(), Clock(3, 3), average=0.5)
    weight, mean = module[0].weight, module[1].running_mean
    with torch.no_grad():
        weight.fill_(0.0)
    for step, statistic in enumerate((1.0, 2.0, 4.0)):
        mean.fill_(statistic)
        weight.grad = torch.full((1, 1), -1.0)  # the weights are 1, 2 and 3
        learner.step(step)
    with learner.averaged():
        assert weight.item() == pytest.approx((0.25 * 1 + 0.5 * 2 + 3) / 1.75)
        assert mean.item() == pytest.approx((0.25 * 1 + 0.5 * 2 + 4) / 1.75)
    assert (weight.item(), mean.item()) == (3.0, 4.0)
    again = Learner(module, optimizer, ScheduleRecipe(), Clock(3, 3), average=0.5)
    again.load("main", learner.state("main"))
    with again.averaged():
        assert weight.item() == pytest.approx((0.25 * 1 + 0.5 * 2 + 3) / 1.75)


def test_batch_norms_with_long_averages_follow_a_short_run():
    norms = [nn.BatchNorm2d(3, momentum=momentum) for momentum in (0.01, 0.1, 0.3, None)]
    for steps, expected in (
        (10_000, [0.01, 0.1, 0.3, None]),
        (1000, [0.05, 0.1, 0.3, None]),
        (50, [0.1, 0.1, 0.3, None]),
    ):
        module = nn.Sequential(*(nn.BatchNorm2d(3, momentum=norm.momentum) for norm in norms))
        forward_pass(module, TRAIN, Clock(steps, steps))
        assert [norm.momentum for norm in module] == expected


def test_a_short_minibatch_moves_statistics_by_its_share_of_samples():
    module = nn.Sequential(nn.BatchNorm1d(1))
    f = forward_pass(module, TRAIN, Clock(100, 10, rows=8))
    f(torch.tensor([[10.0], [10.0]]))  # a quarter of the usual samples
    assert module[0].running_mean.item() == pytest.approx(10.0 * 0.1 / 4)
    f(torch.full((8, 1), 10.0))
    assert module[0].running_mean.item() == pytest.approx(0.25 * 0.9 + 1.0)
    assert module[0].momentum == 0.1
    module.eval()
    f(torch.full((1, 1), 10.0))
    assert module[0].running_mean.item() == pytest.approx(0.25 * 0.9 + 1.0)
