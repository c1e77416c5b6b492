"""Counts equal hand arithmetic, fvcore's own count where it has one, and the sum of the parts the whole."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.counting import FlopCountAnalysis, components, count
from anytime_lct.errors import AnalysisError
from anytime_lct.models import networks as models
from anytime_lct.network import LCTNetwork


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
    assert flops(nn.BatchNorm2d(4), 1, 4, 6, 6) == 2 * 4 * 36
    assert flops(nn.LayerNorm(8), 1, 3, 8) == 5 * 24
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


def test_averages_cost_what_they_read():
    for module in (
        nn.AdaptiveAvgPool2d(1),
        nn.AvgPool2d(6),
        nn.AvgPool2d(2),
        Calls(lambda x: x.mean((2, 3))),
    ):
        assert flops(module, 1, 4, 6, 6) == 4 * 36


def test_as_fvcore_where_fvcore_counts(caplog):
    network, x = models.build("resnet50", (3, 32, 32), 10), torch.zeros(1, 3, 32, 32)
    caplog.set_level(logging.CRITICAL)
    assert count(network, x).flops == FlopCountAnalysis(network.eval(), x).total()


def test_an_operator_without_a_count_is_an_error_that_names_it():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Calls(lambda x: torch.fft.rfft(x).real)))
    with pytest.raises(AnalysisError, match=r"aten::fft_rfft in module '1\.0' \(Calls\)"):
        count(network, torch.zeros(1, 4))


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
        network = LCTNetwork.cut(model, example, num_groups=3, task="language-model")
    else:
        model, example = models.build("resnet", (3, 16, 16), 10, depth=8, width=4), torch.zeros(2, 3, 16, 16)
        network = LCTNetwork.cut(model, example, num_groups=3)
    of_groups, of_critics = components(network.groups, network.critics, example[:1])
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
