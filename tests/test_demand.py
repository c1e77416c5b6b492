"""The memory of a training step: estimated before the first one, compared with its peak and with what is free."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from optimizers import SGD_AND_ADAM
from torch import nn

from anytime_lct.errors import RecipeError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.task import Facts
from anytime_lct.training import demand, memory
from anytime_lct.training.demand import Demand, estimate, expect_room, out_of_memory
from anytime_lct.training.memory import PeakMemory, available
from anytime_lct.training.methods.table import row_of
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock

CPU = Team(torch.device("cpu"))
FACTS = Facts("imagefolder", "classification", (3, 64, 64), 10, tuple("abcdefghij"))
EIGHT = 4 * 8  # bytes of float32 of a sample behind a layer of 8 units


def recipe_of(method="lct", **tables):
    tables = {**SGD_AND_ADAM, "data": {"name": "imagefolder"}, "train": {"method": method, "clip_norm": 0.0}} | tables
    return reading.complete(tables)


def layers():
    return [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]


@pytest.mark.parametrize("rows", [2, 5, 300])
def test_a_step_holds_gradients_optimizer_slots_and_activations(rows):
    """By hand: a layer saves its input, and the output of its ReLU, which the next one reads too."""
    groups, critics = layers(), [nn.Linear(8, 4), nn.Linear(8, 4)]
    weights, of_critics, batch = 3 * 4 * 72, 2 * 4 * 36, 2 * rows * EIGHT
    network, sgd = LCTNetwork(groups, critics), {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    adam = {"name": "adam", "lr": 0.1}
    x = torch.zeros(rows, 8)
    lct = estimate(network, recipe_of(groups=sgd, critics=adam), x, CPU)
    assert lct == Demand(rows, rows * 2 * EIGHT + rows * EIGHT + batch, 2 * weights + 3 * of_critics, 2.0)
    joint = estimate(network, recipe_of("joint", groups=adam, critics=sgd), x, CPU)
    assert joint == Demand(rows, 3 * rows * 2 * EIGHT + 2 * rows * EIGHT + batch, 3 * weights + 2 * of_critics, 1.3)
    whole = LCTNetwork([nn.Sequential(*layers())], [])
    backprop = estimate(whole, recipe_of("bp", groups=sgd), x, CPU)
    assert backprop == Demand(rows, rows * 4 * EIGHT + batch, 2 * weights, 1.3)
    fits_exits = recipe_of("posthoc", critics=adam, train={"method": "posthoc", "weights": "run"})
    assert estimate(network, fits_exits, x, CPU) == Demand(rows, 2 * rows * EIGHT + batch, 3 * of_critics, 2.0)


def test_a_worker_holds_its_own_groups():
    network = LCTNetwork([nn.Linear(8, 8), *layers()[:1], nn.Linear(8, 4)], [nn.Linear(8, 4), nn.Linear(8, 4)])
    parts = [
        estimate(
            network,
            recipe_of(critics={"name": "sgd", "lr": 0.1}),
            torch.zeros(6, 8),
            Team(torch.device("cpu"), worker, 2, bounds=(0, 1, 3)),
        )
        for worker in (0, 1)
    ]
    assert [part and part.fixed for part in parts] == [2 * 4 * (72 + 36), 2 * 4 * (72 + 36 + 36)]


class Standardised(nn.Linear):
    """A layer that makes its weight anew: it saves tensors that do not grow with the batch."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.std())


def test_only_activations_grow_with_the_batch_and_the_network_stays_as_it_is():
    layer = nn.Sequential(Standardised(8, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout()).eval()
    before, luck = {name: value.clone() for name, value in layer.state_dict().items()}, torch.get_rng_state()
    sizes = [estimate(LCTNetwork([layer], []), recipe_of("bp"), torch.zeros(rows, 8), CPU) for rows in (10, 20, 30)]
    small, middle, large = (part.saved for part in sizes if part)
    assert large - middle == middle - small < small
    assert not layer.training and torch.equal(torch.get_rng_state(), luck)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert estimate(LCTNetwork([nn.Conv2d(3, 4, 9)], []), recipe_of("bp"), torch.zeros(4, 3, 2, 2), CPU) is None


@pytest.mark.skipif(not memory.MACHINE.exists(), reason="measures the peak as Linux records it")
@pytest.mark.parametrize("method", ["lct", "bp"])
def test_the_estimate_is_near_the_measured_peak(method):
    recipe, row, rows = recipe_of(method), row_of(method), 64
    groups = [
        nn.Sequential(nn.Conv2d(channels, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU())
        for channels in (3, 12)
    ]
    ends = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)) for _ in range(2)]
    groups[-1].append(ends[-1])
    network = LCTNetwork(groups, ends[:1]) if row.exits else LCTNetwork([nn.Sequential(*groups)], [])
    step = estimate(network, recipe, torch.zeros(rows, *FACTS.input_shape), CPU)
    x, y = torch.randn(rows, *FACTS.input_shape), torch.zeros(rows, dtype=torch.long)
    trained = row.make(network, recipe, "classification", Clock(2, 2, rows), CPU)
    trained.step(Minibatch(x[:2], y[:2], 0))  # loads kernels
    peak = PeakMemory(CPU.device)
    trained.step(Minibatch(x, y, 1))
    assert step is not None and step.estimate > 100e6
    assert abs(math.log(peak.bytes() / step.estimate)) < math.log(2.5)  # 1.5 in a process of its own


def test_what_does_not_fit_is_refused_with_a_smaller_batch(monkeypatch):
    recipe = recipe_of("bp", data={"name": "imagefolder", "batch_size": 128})
    step = Demand(128, 8e9, 1e9, 1.3)

    def room(free, facts=FACTS, demand_=step, team=CPU):
        monkeypatch.setattr(demand, "available", lambda device: free)
        return expect_room(demand_, recipe, facts, team)

    assert room(None) is None and room(12e9) is None
    assert room(10e9) == (
        "This machine has 10.0 GB of memory free, and a training step at data.batch_size=128 takes about 11.4 GB; if "
        "it does not fit, set data.batch_size=104, or a smaller data.image_size."
    )
    with pytest.raises(RecipeError, match=r"^Expected a step that fits into the 4.0 GB of memory that this machine has "
                       r"free, but a training step at data.batch_size=128 takes about 11.4 GB; set "
                       r"data.batch_size=32, or a smaller data.image_size.$"):  # fmt: skip
        room(4e9)
    assert room(4e9, demand_=replace(step, rows=32, saved=2e9)) is None
    with pytest.raises(RecipeError, match=r"no data.batch_size fits: choose a smaller network.$"):
        room(0.9e9, replace(FACTS, name="cifar10"))
    gpu = Team(torch.device("cuda"))
    with pytest.raises(RecipeError, match=r"that this GPU has free"):
        room(4e9, team=gpu)


def test_a_step_that_finds_no_memory_is_one_sentence():
    recipe = recipe_of("bp", data={"name": "imagefolder", "batch_size": 128})
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[..] can't allocate memory: tried")):
        with pytest.raises(RecipeError, match=r"=128; set data.batch_size=80, or free memory"), out_of_memory(recipe):
            raise error
    with pytest.raises(RuntimeError, match="another"), out_of_memory(recipe):
        raise RuntimeError("another")


def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    assert available(cpu) == 4000 * 1024
    for name, content in (("max", "max"), ("current", "3000"), ("stat", "anon 5\ninactive_file 1000\n")):
        (tmp_path / f"memory.{name}").write_text(f"{content}\n")
    assert available(cpu) == 4000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available(cpu) == 5000 - 3000 + 1000
    assert available(torch.device("meta")) is None
