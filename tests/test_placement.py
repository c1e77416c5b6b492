"""Placement against brute force over all choices, and costs against arithmetic by hand."""

from __future__ import annotations

import random
import time
from functools import partial
from itertools import combinations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from anytime_lct.critics import kinds
from anytime_lct.cutting import choice, costs, seconds
from anytime_lct.cutting.groups import cut_groups
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError
from anytime_lct.models import networks as models


class Recurrent(nn.LSTM):
    """A layer that returns its output alone, like those of a character model."""

    def __init__(self, features: int, units: int, bidirectional: bool = False) -> None:
        super().__init__(features, units, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class RecurrentGRU(nn.GRU):
    def __init__(self, features: int, units: int) -> None:
        super().__init__(features, units, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


def groups_of(bounds, S):
    return list(zip((0, *bounds), (*bounds, S), strict=True))


@pytest.mark.parametrize("minimax", [True, False])
def test_the_best_bounds_are_those_of_brute_force(minimax):
    draw = random.Random(3)
    for _ in range(200):
        S = draw.randint(1, 8)
        n = draw.randint(1, S)
        table = [[draw.randint(0, 9) for _ in range(S + 1)] for _ in range(S)]  # not monotone, not additive

        def value(bounds, table=table, S=S):
            costs = [table[a][b] for a, b in groups_of(bounds, S)]
            return (max(costs) if minimax else 0, sum(c * c for c in costs), bounds)

        best = min(combinations(range(1, S), n - 1), key=value)
        assert choice.best_bounds(table, n, minimax=minimax) == best


def test_sums_of_squares_are_exact_beyond_the_digits_of_a_float():
    c = 10**12
    table = [[0, c + 1, c, 0], [0, 0, 0, c - 1], [0, 0, 0, c]]  # 2 c^2 + 2 or 2 c^2
    assert choice.best_bounds(table, 2, minimax=False) == (2,)


def test_training_cost_is_that_of_hand_arithmetic():
    B, T, F, H = 3, 5, 7, 6
    x = torch.zeros(B, F)
    assert costs.training_cost(nn.Linear(F, H), x) == 3 * B * F * H
    assert costs.training_cost(nn.Linear(F, H), x, input_grad=False) == 2 * B * F * H
    conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    assert costs.training_cost(conv, torch.zeros(2, 3, 9, 9)) == 3 * 2 * 8 * 25 * 27
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    assert costs.training_cost(block, torch.zeros(2, 3, 9, 9), input_grad=False) == 2 * 2 * 8 * 81 * 27
    forward = B * T * 4 * H * (F + H)
    first_state = B * 4 * H * H  # zeros, whose gradient nobody asks for
    sequence = torch.zeros(B, T, F)
    assert costs.training_cost(Recurrent(F, H), sequence) == 3 * forward - first_state
    both = Recurrent(F, H, bidirectional=True)
    assert costs.training_cost(both, sequence) == 2 * (3 * forward - first_state)
    gated = costs.training_cost(RecurrentGRU(F, H), sequence)
    assert gated == 3 * (B * T * 3 * H * (F + H)) - B * 3 * H * H


def test_saved_bytes_count_each_activation_once():
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.zeros(2, 3, 9, 9)
    values = 2 * 81 * (3 + 8 + 8) + 2 * 8  # into conv, into norm, out of ReLU; mean and deviation of the norm
    assert costs.saved_bytes(block, x) == 4 * values
    two = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    assert costs.saved_bytes(two, torch.zeros(7, 5)) == 4 * 7 * (5 + 4)
    assert costs.saved_bytes(nn.ReLU(), torch.zeros(7, 5)) == 4 * 7 * 5
    assert costs.saved_bytes(nn.ReLU(), torch.zeros(7, 5), input_grad=False) == 0


def test_saved_bytes_are_those_that_a_real_forward_pass_saves():
    torch.manual_seed(0)
    model = models.build("resnet", (1, 8, 8), 10, depth=8, width=4).train()
    x, weights = torch.randn(2, 1, 8, 8), {p.data_ptr() for p in model.parameters()}
    weights |= {b.data_ptr() for b in model.buffers()}
    saved: dict[int, Tensor] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert costs.saved_bytes(model, x, input_grad=False) == real


def random_network(draw):
    """Widths and resolutions go up and down, so that costs are far from monotone."""
    layers, channels = [], 2
    for _ in range(draw.randint(4, 6)):
        width = draw.choice([1, 3, 4, 12, 20])
        layers += [nn.Conv2d(channels, width, draw.choice([1, 3]), draw.choice([1, 1, 2]), 1)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=draw.random() < 0.5)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


@pytest.mark.parametrize(("by", "weight_copies"), [("balanced", 0), ("memory", 0), ("memory", 3)])
@pytest.mark.parametrize("seed", range(4))
def test_groups_placed_have_the_smallest_maximum_with_their_critics(by, weight_copies, seed):
    draw = random.Random(seed)
    model, x = random_network(draw), torch.zeros(2, 2, 8, 8)
    trace = Trace.of(model)

    def critic(k, hidden, follows):
        return kinds.build("slim", hidden, 10) if hidden.dim() == 4 else None

    measured = {}

    def cost(places):
        """Costs of the very groups that LCT trains, each with its own critic, measured whole."""
        h = x
        ends = list(zip((None, *places), (*places, None), strict=True))
        for group, end in zip(cut_groups(trace, places), ends, strict=True):
            if end not in measured:
                after = group(h).detach()
                measured[end] = (cost_of(group, end, h, after), after)
            h = measured[end][1]
        costs = [measured[end][0] for end in ends]
        return max(costs), sum(c * c for c in costs)

    def cost_of(group, end, h, after):
        small = None if end[1] is None else critic(0, after, 0)
        if by == "memory":
            whole = group if small is None else nn.Sequential(group, small)
            saved = costs.saved_bytes(whole, h, input_grad=False)
            weights = sum(p.nbytes for p in group.parameters())
            crossing = (h.nbytes if end[0] else 0) + (2 * after.nbytes if end[1] else 0)
            return saved + weight_copies * weights + (crossing if weight_copies else 0)
        own = costs.training_cost(group, h, input_grad=False)
        return own + (0 if small is None else costs.training_cost(small, after))

    names = [cut.name for cut in trace.candidates]
    for num_groups in range(2, len(names) + 2):
        best = min(combinations(names, num_groups - 1), key=cost)  # the first, and so earliest, of equals
        assert choice.best_cuts(trace, x, num_groups, by, critic, weight_copies) == best


@pytest.mark.parametrize("seed", range(4))
def test_measured_cuts_even_out_the_mean_of_what_all_processes_measured(seed, monkeypatch):
    """A clock that each weight moves on by a microsecond; the other process takes twice as long, in every group."""
    model, x = random_network(random.Random(seed)), torch.zeros(2, 2, 8, 8)
    microseconds, averaged = 0, []

    def pass_time(weights, *_):
        nonlocal microseconds
        microseconds += weights

    def average(values):
        averaged.append(values)
        return [round(1.5 * value) for value in values]

    for module in model.modules():
        module.register_forward_hook(partial(pass_time, sum(p.numel() for p in module.parameters(recurse=False))))
    monkeypatch.setattr(time, "perf_counter", lambda: 1e-6 * microseconds)
    trace, peers = Trace.of(model), seconds.Peers(1, average)
    names = [cut.name for cut in trace.candidates]
    for N in range(2, len(names) + 2):
        cuts = choice.best_cuts(trace, x, N, "measured", lambda *cut: nn.PReLU(), peers=peers)
        sizes = [weights_of(group) for group in cut_groups(trace, cuts)]
        best = min(
            max(weights_of(group) for group in cut_groups(trace, places)) for places in combinations(names, N - 1)
        )
        assert max(sizes) <= choice.CLOSE * best
        assert sizes in averaged


def weights_of(module):
    return sum(p.numel() for p in module.parameters())


DEPTHS = {"resnet18": 18, "resnet50": 50, "vgg11": 11, "densenet121": 121, "googlenet": 22, "alexnet": 8}


@pytest.mark.parametrize("name", DEPTHS)
def test_a_network_has_as_many_layers_as_its_name_says(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    trace = Trace.of(getattr(torchvision.models, name)(**options))
    assert costs.of_layers(trace)[0][-1] == DEPTHS[name]


def test_layers_are_spread_as_evenly_as_possible():
    trace = Trace.of(models.build("resnet50", (3, 32, 32), 10))
    places = choice.best_cuts(trace, torch.zeros(2, 3, 32, 32), 4, "layers", lambda *cut: None)
    sizes = [
        sum(isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n for n, m in g.named_modules())
        for g in cut_groups(trace, places)
    ]
    assert sum(sizes) == 50
    ends = [1, *range(4, 50, 3)]  # layers up to each end of a block
    even = min(
        sum((b - a) ** 2 for a, b in zip((0, *bounds), (*bounds, 50), strict=True)) for bounds in combinations(ends, 3)
    )
    assert sum(size**2 for size in sizes) == even


def test_the_network_is_left_as_it_was():
    model = models.build("resnet", (1, 8, 8), 10, depth=8, width=4)
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    trace = Trace.of(model)
    for by in ("balanced", "memory"):
        choice.best_cuts(trace, torch.zeros(1, 1, 8, 8), 3, by, lambda k, h, follows: kinds.build("slim", h, 10))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_more_groups_than_places_are_refused_with_the_places():
    trace = Trace.of(models.build("mlp", (1, 8, 8), 10))
    with pytest.raises(PartitionError, match=r"from 1 to 3 layer groups, got 4.*relu1, relu2"):
        choice.best_cuts(trace, torch.zeros(2, 1, 8, 8), 4, "layers", lambda *cut: nn.Identity())


def test_critics_are_made_without_memory():
    trace = Trace.of(models.build("mlp", (1, 8, 8), 10))

    def huge(k, hidden, follows):
        return nn.Sequential(nn.Linear(hidden.shape[1], 10**9), nn.Linear(10**9, 10))

    assert choice.best_cuts(trace, torch.zeros(2, 1, 8, 8), 2, "balanced", huge) == ("relu2",)


def test_a_character_model_is_placed_between_its_layers():
    trace = Trace.of(models.build("lstm", (9,), 20, layers=4, units=16, embedding=8))
    characters = torch.zeros(2, 9, dtype=torch.int64)

    def critic(k, hidden, follows):
        return nn.Linear(hidden.shape[-1], 20)

    for by in ("layers", "balanced", "memory"):
        assert choice.best_cuts(trace, characters, 4, by, critic) == ("lstm.0", "lstm.1", "lstm.2")


def test_cuts_that_part_tied_weights_are_not_chosen():
    layers = [m for _ in range(5) for m in (nn.Linear(4, 4), nn.ReLU())]
    layers[2].weight = layers[0].weight
    trace = Trace.of(nn.Sequential(*layers))
    assert choice.best_cuts(trace, torch.zeros(2, 4), 3, "layers", lambda *cut: None) == ("3", "5")


def test_a_network_that_cannot_be_measured_says_so():
    trace = Trace.of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    with pytest.raises(PartitionError, match="cannot be measured on a batch of shape"):
        choice.best_cuts(trace, torch.zeros(2, 5), 2, "balanced", lambda *cut: None)
