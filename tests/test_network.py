"""LCTNetwork: sub-models, weights under the uncut network's names, carried state, and clear refusals."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from anytime_lct import counting
from anytime_lct.analysis.inspection import inspect
from anytime_lct.critics import kinds
from anytime_lct.errors import CheckpointError, CriticError, PartitionError
from anytime_lct.evaluation import evaluate
from anytime_lct.models import networks as models
from anytime_lct.modes import carriers, carrying
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe


def small(num_groups: int = 3, **options) -> LCTNetwork:
    torch.manual_seed(0)
    return LCTNetwork.cut(
        models.build("resnet", (1, 8, 8), 10, depth=8, width=4),
        torch.zeros(2, 1, 8, 8),
        CutRecipe(groups=num_groups, by="layers"),
        **options,
    )


def test_sub_models_are_groups_and_a_critic():
    network = small().eval()
    x = torch.randn(3, 1, 8, 8)
    outputs = network(x)
    h = x
    for i in range(1, 4):
        h = network.groups[i - 1](h)
        expected = network.critics[i - 1](h) if i < 3 else h
        assert torch.equal(outputs[i - 1], expected)
        assert torch.equal(network.sub_model(i)(x), expected)


def test_the_main_networks_weights_load_into_the_uncut_network():
    model = torchvision.models.resnet18()
    network = LCTNetwork.cut(model, torch.zeros(2, 3, 64, 64), CutRecipe(places=("layer1", "layer2", "layer3")))
    fresh = torchvision.models.resnet18()
    fresh.load_state_dict(network.main_state())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(fresh.eval()(x), network.sub_model(4).eval()(x))
    assert {name.partition(".")[0] for name in network.critics_state()} == {"critic_1", "critic_2", "critic_3"}


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (
            nn.BatchNorm2d(8, track_running_stats=False),
            r"'1\.0' \(BatchNorm2d\) to have running statistics, without which",
        ),
        (nn.LSTM(8, 6, proj_size=3), r"'1\.0' \(LSTM\) to have no projection, which ONNX lacks: proj_size=0"),
    ],
)
def test_a_layer_that_cannot_answer_alone_or_be_exported_is_refused_before_training(layer: nn.Module, problem: str):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sequential(layer), nn.Flatten(), nn.Linear(8 * 36, 3))
    with pytest.raises(PartitionError, match=problem):
        LCTNetwork.cut(model, torch.zeros(2, 1, 8, 8), CutRecipe(places=("0",)))


def test_weights_survive_saving_and_loading():
    one, other = small(), small()
    for p in other.parameters():
        nn.init.constant_(p, 0.5)
    other.load(one.main_state(), one.critics_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' is missing"):
        other.load({k: v for k, v in one.main_state().items() if k != "conv1.weight"}, one.critics_state())
    with pytest.raises(CheckpointError, match=r"shape \(4,\), expected \(10,\)"):
        other.load({**one.main_state(), "fc.bias": torch.zeros(4)}, one.critics_state())


def test_cutting_leaves_modes_and_statistics_alone():
    model = models.build("resnet", (1, 8, 8), 10, depth=8, width=4)
    model.layer1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    LCTNetwork.cut(model, torch.zeros(2, 1, 8, 8), CutRecipe(groups=3, by="balanced"))
    assert model.training
    assert not model.layer1[0].bn1.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_every_critic_can_have_its_own_depth():
    network = small(critic=CriticRecipe(kind="slim", depth=(2, 1)))
    counts = [sum(isinstance(m, nn.Conv2d) for m in critic.modules()) for critic in network.critics]
    assert counts == [3, 2]
    with pytest.raises(CriticError, match="2 of them"):
        small(critic=CriticRecipe(depth=(1, 2, 3)))


@pytest.mark.parametrize(
    ("kind", "shape", "outputs", "parameters"),
    [
        ("paper", (256, 32, 32), 10, 256 * 9 * 128 + 128 + 128 * 1024 * 10 + 10),  # 1.61 M in Table VIII
        ("paper", (512, 16, 16), 100, 512 * 9 * 128 + 128 + 128 * 256 * 100 + 100),  # 3.87 M
        ("paper-imagenet", (256, 56, 56), 1000, 250_025),  # 0.25 M
        ("paper-imagenet", (1024, 14, 14), 1000, 692_393),  # 0.69 M
        ("paper", (300,), 10, 3010),
        ("slim", (300,), 10, 3010),
    ],
)
def test_critics_have_the_papers_sizes(kind, shape, outputs, parameters):
    critic = kinds.build(kind, torch.zeros(2, *shape), outputs)
    assert sum(p.numel() for p in critic.parameters()) == parameters
    assert critic(torch.zeros(2, *shape)).shape == (2, outputs)


def test_critics_for_text_are_linear_at_every_step():
    critic = kinds.build("paper", torch.zeros(2, 7, 600), 50, "language-model")
    assert sum(p.numel() for p in critic.parameters()) == 600 * 50 + 50
    assert critic(torch.zeros(2, 7, 600)).shape == (2, 7, 50)


@pytest.mark.parametrize(
    ("name", "side"), [("squeezenet1_1", 64), ("mobilenet_v2", 64), ("shufflenet_v2_x0_5", 32), ("resnet50", 32)]
)
def test_residual_critics_keep_their_budget(name, side):
    model = torchvision.models.get_model(name, num_classes=10)
    inspection = inspect(model, torch.zeros(2, 3, side, side), CutRecipe(), CriticRecipe())
    shares = [part.exit.flops / inspection.main.flops for part in inspection.parts]
    assert all(share <= 0.9 for share in shares[:-1])


def test_residual_critics_narrow_only_where_they_have_to_and_draw_the_same_weights():
    hidden, whole = torch.zeros(2, 64, 16, 16), []
    for budget in (None, 40_000_000, 3_000_000):  # the widest costs some 34 M a sample
        torch.manual_seed(5)
        whole.append(kinds.build("residual", hidden, 10, depth=2, budget=budget))
    free, roomy, tight = (critic.state_dict() for critic in whole)
    assert all(torch.equal(free[name], roomy[name]) for name in free)
    costs = [counting.count(critic, hidden[:1]).flops for critic in whole]
    assert costs[0] == costs[1] > 3_000_000 >= costs[2] > 1_000_000
    assert tight["0.conv1.weight"].shape == (24, 64, 3, 3)
    pooled = kinds.build("residual", hidden, 10, budget=10_000)
    assert [type(layer) for layer in pooled] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]


@pytest.mark.parametrize(
    ("kind", "shape", "task", "says"),
    [
        ("tiny", (4, 8, 8), "classification", "slim, residual, paper, paper-imagenet"),
        ("paper-imagenet", (30,), "classification", "cannot read"),
        ("slim", (2, 7, 30, 30), "classification", "cannot read"),
        ("slim", (4, 8, 8), "language-model", "cannot read"),
    ],
)
def test_critics_that_do_not_suit_are_refused(kind, shape, task, says):
    with pytest.raises(CriticError, match=says):
        kinds.build(kind, torch.zeros(2, *shape), 10, task)


def test_an_exit_out_of_range_is_refused():
    with pytest.raises(PartitionError, match="from 1 to 3, got 4"):
        small().sub_model(4)


def test_evaluation_carries_hidden_state_and_puts_back_what_was_there():
    torch.manual_seed(0)
    model = models.build("lstm", (6,), 9, layers=2, units=5, embedding=3)
    network = LCTNetwork.cut(model, torch.zeros(2, 6, dtype=torch.long), CutRecipe(groups=2), task="language-model")
    x, y = torch.randint(0, 9, (2, 12)), torch.randint(0, 9, (2, 12))
    pieces = evaluate(network, [(x[:, :6], y[:, :6]), (x[:, 6:], y[:, 6:])], "language-model")
    whole = evaluate(network, [(x, y)], "language-model")
    torch.testing.assert_close(pieces.losses.view(2, 2, 2).mean(1), whole.losses)
    assert pieces.losses.shape == (2, 4)
    for _, module in carriers(network):
        assert not module.carry
        assert module.state is None
    with carrying(network):
        network(x)
        states = [m.state for _, m in carriers(network)]
        evaluate(network, [(x, y)], "language-model")
        assert all(m.state is state for (_, m), state in zip(carriers(network), states, strict=True))
