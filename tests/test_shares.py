"""Exits at shares of the cost: residual critics within budgets, the joint choice of cuts, networks with own exits."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torchvision
from torch import nn

from anytime_lct import savings
from anytime_lct.counting import count_in_turn
from anytime_lct.critics.places import CriticMakers, choose_exits, choose_places
from anytime_lct.critics.residual import LARGEST_CAP, MOST_BLOCKS, plan
from anytime_lct.cutting.shares import ExitChoice, Trunks, badness, choose
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import CriticError, PartitionError
from anytime_lct.models import networks
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe

MAPS = [(16, 32, 32), (64, 56, 56), (24, 28, 14), (64, 8, 8), (32, 7, 7), (3, 13, 17)]


@pytest.mark.parametrize("shape", MAPS)
def test_a_residual_critic_is_within_its_budget_and_counts_what_the_counter_counts(shape):
    largest = plan(shape, 10).multiply_adds
    x, costs = torch.zeros(1, *shape), list[int]()
    for budget in (largest * 1.5, largest, largest / 2, largest / 7, largest / 50, 1.0):
        critic = plan(shape, 10, budget=budget)
        module = critic.build().eval()
        assert module(x).shape == (1, 10)
        assert count_in_turn([module], x)[0][0] == critic.multiply_adds
        assert critic.multiply_adds <= budget or not critic.widths
        assert len(critic.widths) <= MOST_BLOCKS and all(width <= LARGEST_CAP for width in critic.widths)
        costs.append(critic.multiply_adds)
    assert costs == sorted(costs, reverse=True) and costs[2] > 0.75 * largest / 2


def test_a_residual_critic_gets_more_blocks_where_its_widths_are_at_their_largest():
    shape, depth = (64, 8, 8), 3
    largest = plan(shape, 10)
    assert len(plan(shape, 10, budget=3 * largest.multiply_adds).widths) > len(largest.widths)
    assert plan(shape, 10, depth, budget=9 * largest.multiply_adds) == plan(shape, 10, depth)


def test_a_map_is_pooled_where_the_first_block_would_be_narrow():
    narrow = plan((16, 112, 112), 10, budget=16e6)
    assert narrow.pool == 2 and narrow.widths[0] >= 16


def test_the_choice_is_the_best_of_all_choices():
    draws = random.Random(3)
    for _ in range(40):
        amounts = sorted(draws.sample(range(1, 900), 7))
        trunks = Trunks(tuple("abcdefg"), tuple(torch.empty(k + 1) for k in range(7)), tuple(amounts), 1000)
        sizes = [draws.randrange(1, 300) for _ in amounts]
        grows = [draws.random() < 0.5 for _ in amounts]

        def critic(k, hidden, budget, sizes=sizes, grows=grows):
            assert len(hidden) == k + 1
            return max(1, int(budget)) if grows[k] else sizes[k]

        shares = sorted(draws.sample([0.1, 0.2, 0.3, 0.45, 0.6, 700, 900], 3))
        limits = [share * 1000 if share < 1 else share for share in shares]
        every = [
            [ExitChoice(k, amounts[k], critic(k, trunks.hidden[k], limit - amounts[k])) for limit in limits]
            for k in range(7)
        ]
        for strict in (True, False):
            combinations = [
                [every[k][i] for i, k in enumerate(places)] for places in itertools.combinations(range(7), 3)
            ]
            fitting = [
                chosen
                for chosen in combinations
                if not strict or all(c.cost <= limit for c, limit in zip(chosen, limits, strict=True))
            ]

            def total(chosen, limits=limits):
                return sum(badness(c, limit, 0.5) for c, limit in zip(chosen, limits, strict=True))

            if not fitting:
                with pytest.raises(PartitionError, match=r"Expected (room|a place) for exit \d"):
                    choose(trunks, shares, [critic] * 3, 0.5)
                continue
            chosen = choose(trunks, shares, [critic] * 3, 0.5, strict=strict)
            assert total(chosen) == pytest.approx(min(map(total, fitting)))


@pytest.mark.parametrize(
    ("name", "shape", "shares"),
    [
        ("resnet20", (3, 32, 32), (0.25, 0.5, 0.75)),
        ("resnet20", (3, 32, 32), (0.1, 0.2, 0.3)),
        ("torchvision:mobilenet_v3_small", (3, 64, 64), (0.1, 0.4)),
        ("torchvision:resnet50", (3, 64, 64), (0.1, 0.25)),
        ("torchvision:vit_b_32", (3, 64, 64), (0.1, 0.5)),
    ],
)
def test_exits_spend_their_shares(name, shape, shares):
    model, example = networks.build(name, shape, 10), torch.zeros(2, *shape)
    network = LCTNetwork.cut(model, example, CutRecipe(shares=shares), compare=False)
    spent = savings.shares(savings.multiply_adds(network, example))[:-1]
    least = 0.0 if "vit" in name else 0.65  # critics of tokens are linear: the next block may not fit
    assert all(least * share < amount <= share for share, amount in zip(shares, spent, strict=True))
    again = LCTNetwork.cut(model, example, CutRecipe(places=network.places, shares=shares), compare=False)
    sizes = [[p.shape for p in critic.parameters()] for critic in network.critics]
    assert sizes == [[p.shape for p in critic.parameters()] for critic in again.critics]


def test_exits_have_even_shares_by_default_and_critics_take_the_part_that_is_asked_for():
    model, example = networks.build("resnet20", (3, 32, 32), 10), torch.zeros(2, 3, 32, 32)
    default = choose_places(model, example)
    assert default == choose_places(model, example, CutRecipe(shares=(0.25, 0.5, 0.75)))
    makers = [CriticMakers(Trace.of(model), example, CriticRecipe(share=share)) for share in (0.2, 0.8)]
    parts = [[choice.critic / choice.cost for choice in choose_exits(maker, (0.25, 0.5, 0.75))] for maker in makers]
    assert all(small < large for small, large in zip(*parts, strict=True))


def test_shares_without_room_say_what_the_cheapest_exit_takes():
    model, example = torchvision.models.resnet18(num_classes=10), torch.zeros(2, 3, 64, 64)
    with pytest.raises(
        PartitionError, match=r"exit 1 within 1.0% .*, but the cheapest, after 'maxpool', takes \d+\.\d%"
    ):
        choose_places(model, example, CutRecipe(shares=(0.01,)), CriticRecipe(kind="slim"))
    with pytest.raises(PartitionError, match=r"within 1,000 multiply-adds, .* takes [\d,]+ with"):
        choose_places(model, example, CutRecipe(shares=(1000,)))
    trunks = Trunks(("a", "b"), (torch.empty(1),) * 2, (10, 20), 100)
    with pytest.raises(PartitionError, match="at most 2 exits before the main network's own, got 3 shares"):
        choose(trunks, (0.2, 0.3, 0.4), [lambda *cut: 1] * 3, 0.5)
    with pytest.raises(PartitionError, match=r"a place for exit 2 within 40.0% .*, but the exits before it take all"):
        choose(trunks, (0.25, 0.4), [lambda k, *cut: (99, 1)[k]] * 2, 0.5)


class Own(nn.Sequential):
    exit_places = ("0",)

    def __init__(self) -> None:
        super().__init__(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)), nn.Linear(8, 3))

    def exit_head(self, place: str) -> nn.Module:
        return nn.Sequential(nn.Identity(), nn.Linear(8, 3))


def test_a_network_brings_its_own_exits_unless_others_are_asked_for():
    example = torch.zeros(2, 8)
    network = LCTNetwork.cut(Own(), example)
    assert network.places == ("0",) and isinstance(network.critics[0][0], nn.Identity)  # type: ignore[index]
    assert LCTNetwork.cut(Own(), example, CutRecipe(groups=3), CriticRecipe(kind="residual")).num_groups == 3
    assert choose_places(Own(), example, CutRecipe(), CriticRecipe(kind="slim")) != ("0",)
    with pytest.raises(CriticError, match="no exit of its own after '1'; cut after 0"):
        LCTNetwork.cut(Own(), example, CutRecipe(places=("1",)))
    with pytest.raises(CriticError, match=r"method exit_head\(place\) for critic.kind = 'own', got Sequential"):
        LCTNetwork.cut(nn.Sequential(*Own()), example, CutRecipe(places=("0",)), CriticRecipe(kind="own"))
