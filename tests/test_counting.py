"""Counts equal hand arithmetic, torch's own, those that torchvision publishes, and the sum of the parts the whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as torchvision_models
from torchvision.ops import DeformConv2d

from anytime_lct.counting import component_costs, count
from anytime_lct.critics.places import CriticMakers, choose_exits
from anytime_lct.cutting.costs import on_meta
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import AnalysisError, CountWarning
from anytime_lct.exits.profile import Cost
from anytime_lct.models import networks as models
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticKind, CriticRecipe, CutRecipe

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import networks as survey


class Calls(nn.Module):
    """Runs a function, so that one operator can be counted alone; `layer` is what the function uses."""

    def __init__(self, function: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def flops(module: nn.Module, *shape: int) -> int:
    return count(module, torch.zeros(shape)).flops


def test_convolution_linear_and_norm():
    assert flops(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 12) == 8 * 3 * 9 * 10 * 12
    assert flops(nn.Conv2d(4, 8, 3, stride=2, groups=2), 1, 4, 9, 9) == 8 * 2 * 9 * 4 * 4
    assert flops(nn.ConvTranspose2d(4, 6, 2, stride=2), 1, 4, 5, 5) == 4 * 6 * 4 * 5 * 5
    assert flops(nn.Linear(7, 5), 1, 7) == 35
    assert flops(nn.Linear(7, 5), 1, 11, 7) == 11 * 35
    assert flops(nn.BatchNorm2d(4), 1, 4, 6, 6) == 0
    assert flops(nn.LayerNorm(8), 1, 3, 8) == 0
    assert flops(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Softmax(1)), 1, 4, 6, 6) == 0


def test_parameters_are_distinct():
    shared = nn.Linear(6, 6)
    assert count(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(1, 6)).params == 42
    assert count(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(1, 6)).flops == 72


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(kind: type[nn.RNNBase], gates: int, batch_first: bool):
    layer = kind(5, 6, batch_first=batch_first)
    deep = kind(5, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    example = torch.zeros(1, 9 if batch_first else 1, 5)  # count wants 1 first, be it samples or steps
    steps = example.shape[1]
    one_step = gates * 6 * (5 + 6)
    assert count(Calls(lambda x: layer(x)[0], layer), example).flops == one_step * steps
    assert count(Calls(lambda x: deep(x)[0], deep), example).flops == steps * (2 * one_step + 2 * gates * 6 * (12 + 6))


def test_projected_lstm_and_cells():
    layer = nn.LSTM(5, 6, proj_size=2, batch_first=True)
    module = Calls(lambda x: layer(x)[0], layer)
    assert flops(module, 1, 9, 5) == 9 * (4 * 6 * (5 + 2) + 6 * 2)
    assert flops(Calls(nn.GRUCell(5, 6)), 1, 5) == 3 * 6 * (5 + 6)
    cell = nn.LSTMCell(5, 6)
    assert flops(Calls(lambda x: cell(x)[0], cell), 1, 5) == 4 * 6 * (5 + 6)


def test_attention_matmul_and_einsum():
    assert flops(Calls(lambda x: F.scaled_dot_product_attention(x, x, x)), 1, 2, 7, 4) == 2 * (2 * 7 * 7 * 4)
    assert flops(Calls(lambda x: x @ x.transpose(-1, -2)), 1, 2, 7, 4) == 2 * 7 * 7 * 4
    assert flops(Calls(lambda x: torch.einsum("nhld,nhsd->nhls", x, x)), 1, 2, 7, 4) == 2 * 7 * 7 * 4


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_counted_whatever_path_it_takes(need_weights: bool):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    module = Calls(lambda x: attention(x, x, x, need_weights=need_weights)[0], attention)
    assert flops(module, 1, 7, 8) == 4 * 7 * 8 * 8 + 2 * (7 * 7 * 8)


@pytest.mark.parametrize(
    "module",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AvgPool2d(2),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        Calls(lambda x: x.mean((2, 3))),
        Calls(lambda x: x * x.std((2, 3), keepdim=True)),
        Calls(lambda x: F.grid_sample(x, torch.zeros(1, 6, 6, 2), align_corners=False)),
    ],
)
def test_what_multiplies_no_tensors_is_free(module: nn.Module):
    assert flops(module, 1, 4, 6, 6) == 0


class Deformed(DeformConv2d):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, torch.zeros(1, 18, 4, 4))


class Times(nn.Module):
    """Multiplies by learned weights in a way of its own: `product(x, weights)`."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.product, self.weights = product, nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weights)


@pytest.mark.parametrize(
    ("module", "amount"),
    [
        (nn.Conv2d(4, 8, 3, padding="same"), 8 * 4 * 9 * 36),
        (nn.Conv2d(4, 8, 3, padding="valid"), 8 * 4 * 9 * 16),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), 8 * 4 * 9 * 16),
        (Deformed(4, 8, 3), 8 * 4 * 9 * 16),
        (Times(lambda x, w: torch.einsum("bc...,cd->bd...", x, w), 4, 5), 36 * 4 * 5),
        (Times(lambda x, w: torch.einsum("bchw,cr,dr->bdhw", x, w, w), 4, 2), 36 * 4 * 2 * 2),
        (Times(lambda x, w: torch.cdist(x.flatten(2), w), 7, 36), 4 * 7 * 36),
        (Times(lambda x, w: F.bilinear(x, x, w), 5, 6, 6), 4 * 6 * 5 * 6 * 6),
        (Times(lambda x, w: x + torch.chain_matmul(w, w, w), 6, 6), 2 * 6**3),
    ],
)
def test_other_products_of_tensors(module: nn.Module, amount: int):
    assert flops(module, 1, 4, 6, 6) == amount


def test_an_operator_without_a_count_is_named_and_adds_nothing():
    network = nn.Sequential(nn.Linear(4, 4), Calls(lambda x: torch.fft.rfft(x).abs()), nn.Linear(3, 2))
    with pytest.warns(CountWarning, match=r"counted without aten::fft_rfft, of which no count is known"):
        assert flops(network, 1, 4) == 16 + 6
    parts = nn.ModuleList([network[:2], network[2:]])
    with pytest.warns(CountWarning) as warned:
        component_costs(parts, [nn.Linear(3, 2)], torch.zeros(1, 4))
    assert len(warned) == 1


def test_what_cannot_be_traced_is_counted_while_it_runs():
    def unpooled(x: Tensor) -> Tensor:
        return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)  # type: ignore[arg-type]

    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), Calls(unpooled), nn.Conv2d(8, 8, 1))
    assert flops(network, 1, 4, 6, 6) == 8 * 4 * 9 * 36 + 8 * 8 * 36
    layer = nn.LSTM(6, 3, batch_first=True)
    with pytest.warns(CountWarning, match="counted without LSTM"):
        flops(nn.Sequential(network, Calls(lambda x: layer(x.flatten(1, 2))[0], layer)), 1, 4, 6, 6)


def test_a_failing_forward_pass_is_one_sentence():
    with pytest.raises(AnalysisError, match=r"Expected Linear to run on an input of shape \(1, 5\)"):
        count(nn.Linear(4, 3), torch.zeros(1, 5))
    with pytest.raises(AnalysisError, match="batch 1"):
        count(nn.Linear(4, 3), torch.zeros(2, 4))


def test_text_is_counted_for_one_character():
    network = models.build("lstm", (12,), 7, layers=2, units=6, embedding=5)
    one = 4 * 6 * (5 + 6) + 4 * 6 * (6 + 6) + 6 * 7
    assert count(network, torch.zeros(1, 12, dtype=torch.int64)).flops == one
    assert count(network, torch.zeros(1, 5, dtype=torch.int64)).flops == one
    assert count(nn.Linear(6, 7), torch.zeros(1, 12, 6), steps=12).flops == 42
    with pytest.raises(AnalysisError, match="share evenly"):
        count(
            nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(60, 1)),
            torch.zeros(1, 12).long(),
            steps=11,
        )


@pytest.mark.parametrize("name", ["resnet", "lstm"])
def test_parts_add_up_to_the_whole(name: str):
    if name == "lstm":
        model, example = (
            models.build("lstm", (6,), 7, layers=3, units=5, embedding=4),
            torch.zeros(2, 6).long(),
        )
        network = LCTNetwork.cut(model, example, CutRecipe(groups=3), task="language-model")
    else:
        model, example = models.build("resnet", (3, 16, 16), 10, depth=8, width=4), torch.zeros(2, 3, 16, 16)
        network = LCTNetwork.cut(model, example, CutRecipe(groups=3))
    of_groups, of_critics = component_costs(network.groups, network.critics, example[:1])
    for i in range(1, 4):
        whole = count(network.sub_model(i), example[:1])
        parts = [*of_groups[:i], *of_critics[i - 1 : i]]
        assert whole.flops == sum(part.flops for part in parts)
        assert whole.params == sum(part.params for part in parts)


def test_nothing_is_disturbed(caplog, capfd):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Identity())
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, state = [m.training for m in network.modules()], torch.get_rng_state()
    first = count(network, torch.zeros(1, 3, 8, 8))
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert count(network.eval(), torch.zeros(1, 3, 8, 8)) == first
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_carried_state_is_put_back():
    network = models.build("lstm", (6,), 7, layers=1, units=5, embedding=4)
    layer = network.lstm[0]
    layer.carry = True
    network(torch.zeros(1, 6).long())
    state = layer.state
    count(network, torch.zeros(1, 6).long())
    assert layer.carry and layer.state is state


PUBLISHED = torchvision_models.list_models(module=torchvision_models)
DIGITS = 0.0005e9  # torchvision publishes thousandths of 1e9


class Zeros(TorchFunctionMode):
    """Makes networks of zeros: drawing numbers takes longer than counting."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_):
            return args[0].zero_()
        return (torch.zeros if func is torch.empty else func)(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_every_classifier_of_torchvision_has_the_multiply_adds_that_torchvision_publishes(name: str):
    published_weights = list(torchvision_models.get_model_weights(name))
    weights = min(published_weights, key=lambda each: each.meta["_ops"])  # of several sizes of images, the smallest
    side = max(weights.transforms().crop_size)
    with Zeros():
        more = {"image_size": side} if name.startswith("vit") else {}
        network = torchvision_models.get_model(name, weights=None, **more)
    published = weights.meta["_ops"] * 1e9
    assert count(network, torch.zeros(1, 3, side, side)).flops == pytest.approx(published, rel=0.005, abs=DIGITS)


@pytest.mark.parametrize("name", survey.NAMES)
def test_every_network_of_the_survey_has_the_multiply_adds_that_torch_counts(name: str):
    side = survey.SIDES.get(name, survey.SIDE)
    with Zeros():
        network = models.build(name, (3, side, side), survey.CLASSES).eval()
    counted = count(network, torch.zeros(1, 3, side, side)).flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(network.requires_grad_(False)).eval()(torch.empty(1, 3, side, side, device="meta"))
    assert 2 * counted == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["slim", "residual"])
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_32", "swin_t"])
def test_an_exit_is_chosen_by_the_multiply_adds_that_its_profile_will_have(name: str, kind: CriticKind):
    with Zeros():
        model, example = models.build(f"torchvision:{name}", (3, 64, 64), 10), torch.zeros(2, 3, 64, 64)
    critic = CriticRecipe(kind=kind, depth=1)
    makers = CriticMakers(Trace.of(model), example, critic)
    (choice,) = choose_exits(makers, [0.75])
    network = LCTNetwork.cut(model, example, CutRecipe(shares=(0.75,)), critic)
    assert network.places == (makers.trunks.names[choice.index],)
    groups, critics = component_costs(network.groups, network.critics, example[:1])
    assert (groups[0].flops, critics[0].flops) == (choice.trunk, choice.critic)
    assert choice.cost <= 0.75 * makers.trunks.whole
    assert sum(groups, start=Cost(flops=0, params=0)).flops == makers.trunks.whole
