"""Placement against brute force over all choices, and costs against arithmetic by hand."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
import torch
from torch import nn

from anytime_lct import critics, models, partition, placement
from anytime_lct.errors import PartitionError
from anytime_lct.models.lstm import CarriedLSTM


def groups_of(bounds, S):
    return list(zip((0, *bounds), (*bounds, S), strict=True))


@pytest.mark.parametrize("minimax", [True, False])
def test_the_best_bounds_are_those_of_brute_force(minimax):
    draw = random.Random(3)
    for _ in range(200):
        S = draw.randint(1, 8)
        n = draw.randint(1, S)
        table = [[float(draw.randint(0, 9)) for _ in range(S + 1)] for _ in range(S)]  # neither monotone nor additive

        def value(bounds, table=table, S=S):
            costs = [table[a][b] for a, b in groups_of(bounds, S)]
            return (max(costs) if minimax else 0.0, sum(c * c for c in costs), bounds)

        best = min(combinations(range(1, S), n - 1), key=value)
        assert value(placement.best_bounds(table, n, minimax=minimax)) == value(best)


def test_training_cost_is_that_of_hand_arithmetic():
    B, T, F, H = 3, 5, 7, 6
    x = torch.zeros(B, F)
    assert placement.training_cost(nn.Linear(F, H), x) == 3 * B * F * H
    assert placement.training_cost(nn.Linear(F, H), x, input_grad=False) == 2 * B * F * H
    conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    assert placement.training_cost(conv, torch.zeros(2, 3, 9, 9)) == 3 * 2 * 8 * 25 * 27
    forward = B * T * 4 * H * (F + H)
    no_gradient_of_the_first_state = B * 4 * H * H
    assert placement.training_cost(CarriedLSTM(F, H), torch.zeros(B, T, F)) == 3 * forward - no_gradient_of_the_first_state


def test_saved_bytes_count_each_activation_once():
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.zeros(2, 3, 9, 9)
    values = 2 * 81 * (3 + 8 + 8) + 2 * 8  # into conv, into norm, out of ReLU; mean and deviation of the norm
    assert placement.saved_bytes(block, x) == 4 * values
    assert placement.saved_bytes(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.zeros(7, 5)) == 4 * 7 * (5 + 4)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(12, 3, 1), nn.ReLU(), nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 16, 10),
    )  # fmt: skip


@pytest.mark.parametrize("by", ["balanced", "memory"])
@pytest.mark.parametrize("num_groups", [2, 3, 4, 5])
def test_groups_placed_have_the_smallest_maximum_with_their_critics(by, num_groups):
    model, x = small_network(), torch.zeros(2, 2, 8, 8)
    trace = partition.trace(model)

    def critic(hidden):
        return critics.build("slim", hidden, 10)

    def cost(places):
        worst, h = 0, x
        for number, group in enumerate(partition.groups(trace, places), start=1):
            after = group(h).detach()
            whole = nn.Sequential(group, critic(after)) if number <= len(places) else group
            if by == "memory":
                worst = max(worst, placement.saved_bytes(whole, h))
            else:
                own = placement.training_cost(group, h, input_grad=False)
                worst = max(worst, own + (placement.training_cost(critic(after), after) if number <= len(places) else 0))
            h = after
        return worst

    names = [cut.name for cut in trace.candidates]
    best = min(cost(choice) for choice in combinations(names, num_groups - 1))
    assert cost(placement.place(trace, x, num_groups, by, critic)) == best


def test_layers_are_spread_as_evenly_as_possible():
    trace = partition.trace(models.build("resnet50", (3, 32, 32), 10))
    places = placement.place(trace, torch.zeros(2, 3, 32, 32), 4, "layers", lambda h: nn.Identity())
    sizes = [
        sum(isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n for n, m in g.named_modules())
        for g in partition.groups(trace, places)
    ]
    assert sum(sizes) == 50
    ends = [1, *range(4, 50, 3)]  # layers up to each end of a block
    even = min(
        sum((b - a) ** 2 for a, b in zip((0, *choice), (*choice, 50), strict=True)) for choice in combinations(ends, 3)
    )
    assert sum(size**2 for size in sizes) == even


def test_the_network_is_left_as_it_was():
    model = models.build("resnet", (1, 8, 8), 10, depth=8, width=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    trace = partition.trace(model)
    placement.place(trace, torch.zeros(2, 1, 8, 8), 3, "balanced", lambda h: critics.build("slim", h, 10))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_more_groups_than_places_are_refused_with_the_places():
    trace = partition.trace(models.build("mlp", (1, 8, 8), 10))
    with pytest.raises(PartitionError, match="from 1 to 3 layer groups, got 4.*relu1, relu2"):
        placement.place(trace, torch.zeros(2, 1, 8, 8), 4, "layers", lambda h: nn.Identity())
    with pytest.raises(PartitionError, match="layers, balanced, memory"):
        placement.place(trace, torch.zeros(2, 1, 8, 8), 2, "depth", lambda h: nn.Identity())  # type: ignore[arg-type]
