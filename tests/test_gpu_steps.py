"""Training steps as a GPU runs them: on data that stay there, without a wait for the CPU, recorded and replayed.

Without a GPU, torch's device meta takes its place, which has no values: whatever reads one fails. A recorded graph is
a function that is called again, without the host's part of the step.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from anytime_lct.data import datasets
from anytime_lct.data.batches import Dataset
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder.build import build_network
from anytime_lct.training import learner as learners
from anytime_lct.training.lanes import Lanes
from anytime_lct.training.learner import Learner
from anytime_lct.training.loop import Loop
from anytime_lct.training.method import Method
from anytime_lct.training.methods.group import GroupInTraining
from anytime_lct.training.methods.table import METHODS
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.prepare import suit_device
from anytime_lct.training.processes.links import Edge, Message
from anytime_lct.training.processes.team import Team
from anytime_lct.training.replay import WARM_UP, CudaGraph, Replay
from anytime_lct.training.schedule import Clock

CPU, META = torch.device("cpu"), torch.device("meta")
RECORDED = ["lct", "bp", "joint", "posthoc", "dni"]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")


RESNET, MLP = {"name": "resnet", "depth": 8, "width": 4}, {"name": "mlp", "hidden": [8, 8]}
MODELS = {"lct": RESNET, "bp": RESNET, "joint": MLP, "posthoc": MLP, "dni": MLP}


def recipe_of(method: str, **tables: dict) -> Recipe:
    return recipes.complete(
        {
            "data": {"name": "digits", "batch_size": 16, "augment": "crop-flip"},
            "model": MODELS[method],
            "cut": {"groups": 3},
            "critic": {"kind": "slim"},
            "groups": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4},
            "critics": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
            "dni": {"width": 8},
            "train": {"method": method, "epochs": 2, "clip_norm": 1.0, "precision": "float32"},
            **tables,
        }
    )


def methods_of(recipe: Recipe, data: Dataset, device: torch.device, clock: Clock, count: int = 1) -> list[Method]:
    """Methods that start alike."""
    row = METHODS[recipe.train.method]
    network = build_network(recipe, data.facts, whole=not row.cuts, compare=False).to(device).train()
    copies = [copy.deepcopy(network) for _ in range(count)]
    return [row.make(each, recipe, data.facts.task, clock, Team(device)) for each in copies]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.from_recipe(recipe_of("lct"))


@pytest.fixture
def without_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers have no fused kernels for meta tensors, and Adam reads its count of steps without one."""

    def sgd(weights: object, *, fused: bool, **options: float) -> torch.optim.SGD:
        return torch.optim.SGD(weights, **options)

    monkeypatch.setattr(learners, "OPTIMIZERS", {"sgd": sgd, "adam": lambda w, lr, **_: torch.optim.SGD(w, lr)})


@pytest.mark.parametrize("method", RECORDED)
def test_a_step_reads_no_value_of_the_device(method, digits, without_fused_kernels):
    recipe, clock = recipe_of(method), Clock(20, 10, 16)
    on_meta = digits.to(META)
    (trained,) = methods_of(recipe, digits, META, clock)
    loop = Loop(trained, on_meta, recipe.train, clock, Team(META), len(trained.exits))
    loop.method.start_epoch()
    for batch, _ in zip(loop._minibatches(), range(2), strict=False):
        assert batch.x.device == batch.y.device == META
        losses = loop._step(batch)
        loop.sums[0, loop.columns] += losses * len(batch.y)


def test_a_worker_with_neighbours_reads_no_value_of_the_device_either(digits, without_fused_kernels):
    """Labels go down as they came from the data, on the CPU; losses come up and sums go up on the device."""

    class Below:
        """The link to a worker, and that from it, which sends losses up."""

        messages: ClassVar[list[Message]] = []

        def send(self, message: Message) -> None:
            self.messages.append(message)

        def receive(self, step: int, last: bool = False) -> Message:
            return Message(step, torch.zeros(16 + 6, dtype=torch.float64, device=META))

    recipe, team = recipe_of("lct", train={"epochs": 1, "clip_norm": 1.0}), Team(META, workers=2, bounds=(0, 2, 3))
    team.next = Edge(Below(), Below())  # type: ignore[arg-type]
    network = build_network(recipe, digits.facts, compare=False).to(META).train()
    method = Worker.of(network, recipe, "classification", Clock(20, 10, 16), team)
    loop = Loop(method, digits, recipe.train, Clock(20, 10, 16), team, 3)
    for batch, _ in zip(loop._minibatches(), range(3), strict=False):
        loop._set_status()
        loop.sums[0, loop.columns] += loop._step(batch) * len(batch.y)
    assert len(Below.messages) == 3
    assert all(m.tensor.device == META and m.labels.device == CPU for m in Below.messages if m.labels is not None)


class FunctionGraph:
    """A graph on the CPU: a replay calls the function, but its host's part, which sets rates, does nothing then."""

    replays = 0

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        return function()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        self._function, self._result = function, torch.zeros(0, dtype=torch.float64)
        return self._result

    def replay(self) -> None:
        self.replays += 1
        set_rate, Learner.set_rate = Learner.set_rate, lambda self, step: None
        try:
            result = self._function()
        finally:
            Learner.set_rate = set_rate
        self._result.resize_(result.shape).copy_(result)


def minibatches(data: Dataset, count: int) -> Iterator[Minibatch]:
    """Minibatches of one shape, but for a short one in the middle."""
    step = 0
    for epoch in range(9):
        for x, y in data.batches("train", epoch):
            if step == count:
                return
            rows = 9 if step == count // 2 else len(y)
            yield Minibatch(x[:rows], y[:rows], step)
            step += 1


def states_after(step: Callable[[Minibatch], Tensor], method: Method, data: Dataset, count: int):
    losses = [step(batch).clone() for batch in minibatches(data, count)]
    return losses, {(k, name): value for k, flat in method.state().items() for name, value in flat.items()}


def expect_equal(ours, theirs) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert ours[1].keys() == theirs[1].keys()
    assert all(torch.equal(ours[1][key], theirs[1][key]) for key in ours[1])


@pytest.mark.parametrize("method", RECORDED)
def test_replays_train_as_the_steps_themselves(method, digits):
    recipe, clock = recipe_of(method, groups_schedule={"name": "one-cycle"}), Clock(8, 4, 16)
    graph, (eager, recorded) = FunctionGraph(), methods_of(recipe, digits, CPU, clock, 2)
    expected = states_after(eager.step, eager, digits, 8)
    expect_equal(states_after(Replay(recorded, graph).step, recorded, digits, 8), expected)
    assert graph.replays == 8 - WARM_UP - 1


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.5 else x + 0


def hooked() -> nn.Module:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda *_: None)
    return layer


UNREPEATED = [nn.Dropout(0.1), Counting(), Averaging(), Drawing(), hooked()]


@pytest.mark.parametrize("layer", UNREPEATED, ids=["dropout", "counting", "averaging", "drawing", "hooked"])
def test_steps_that_a_replay_would_not_repeat_are_not_recorded(layer, digits):
    recipe, graph = recipe_of("bp"), FunctionGraph()
    network = LCTNetwork([nn.Sequential(nn.Flatten(), layer, nn.Linear(64, 10))], []).train()
    method = METHODS["bp"].make(network, recipe, "classification", Clock(8, 4, 16), Team(CPU))
    step = Replay(method, graph).step
    for batch in minibatches(digits, WARM_UP + 2):
        step(batch)
    assert graph.replays == 0


def test_a_step_that_cannot_be_recorded_runs_as_it_is(digits):
    class Waiting(FunctionGraph):
        def record(self, function: Callable[[], Tensor]) -> Tensor:
            raise RuntimeError("operation not permitted when stream is capturing")

    recipe, clock = recipe_of("joint"), Clock(8, 4, 16)
    eager, recorded = methods_of(recipe, digits, CPU, clock, 2)
    expected = states_after(eager.step, eager, digits, 6)
    expect_equal(states_after(Replay(recorded, Waiting()).step, recorded, digits, 6), expected)


class NotedLanes(Lanes):
    """Lanes on the CPU, which note the calls of a step in their order."""

    def __init__(self) -> None:
        super().__init__(CPU, 0)
        self.lane, self.calls = -1, list[tuple[object, ...]]()

    @contextmanager
    def on(self, lane: int) -> Iterator[None]:
        self.lane = lane
        yield
        self.lane = -1

    def hand(self, tensor: Tensor, source: int, target: int) -> None:
        self.calls.append(("hand", source, target))

    def join(self) -> None:
        self.calls.append(("join",))


def test_a_group_works_on_its_lane_and_the_next_one_starts_before_its_critic(digits, monkeypatch):
    (method,) = methods_of(recipe_of("joint", train={"epochs": 1, "method": "lct"}), digits, CPU, Clock(8, 4, 16))
    assert isinstance(method, Worker)
    method.lanes = lanes = NotedLanes()

    def noted(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def call(group: GroupInTraining, *arguments: object) -> object:
            lanes.calls.append((name, group.index - 1, lanes.lane))
            return work(group, *arguments)

        return call

    for name in ("forward", "judge", "descend", "learn"):
        monkeypatch.setattr(GroupInTraining, name, noted(name, getattr(GroupInTraining, name)))
    method.step(next(minibatches(digits, 1)))
    work = [
        [("forward", k, k), ("hand", k, k + 1), ("judge", k, k), ("hand", k, k - 1), ("descend", k, k)]
        + [("learn", k - 1, k - 1)] * (k > 0)
        for k in range(3)
    ]
    assert lanes.calls == [*work[0], *work[1], *work[2], ("join",)]


def test_a_gpu_with_bfloat16_trains_in_it_by_default(monkeypatch):
    left_open, chosen = recipe_of("lct", train={"epochs": 1}), recipe_of("lct")
    for supported, device, expected in (
        (True, torch.device("cuda"), ("bfloat16", True)),
        (False, torch.device("cuda"), ("float32", False)),
        (True, CPU, ("float32", False)),
    ):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        train = suit_device(left_open, device).train
        assert (train.precision, train.channels_last) == expected
        assert suit_device(chosen, device).train.precision == "float32"


def test_processes_read_images_for_a_gpu_by_default(digits):
    assert digits.readers == 0
    assert 1 <= dataclasses.replace(digits, device=torch.device("cuda")).readers <= 8
    assert dataclasses.replace(digits, device=torch.device("cuda"), workers=3).readers == 3


@pytest.mark.parametrize("share", [(0, 1), (1, 3)])
def test_minibatches_that_are_made_together_are_those_made_one_by_one(share, digits):
    together = dataclasses.replace(digits, device=torch.device("cpu", 0))  # as on any device but "cpu"
    ours, theirs = (list(data.batches("train", 1, 3, share)) for data in (together, digits))
    assert len(ours) == len(theirs) == 78
    for (x, y), (x_expected, y_expected) in zip(ours, theirs, strict=True):
        assert torch.equal(x, x_expected) and torch.equal(y, y_expected)


def test_minibatches_of_evaluation_are_large_on_a_gpu(digits):
    on_gpu = dataclasses.replace(digits, device=torch.device("cuda"))
    assert [digits.num_batches(split) for split in ("train", "validation")] == [81, 9]
    assert [on_gpu.num_batches(split) for split in ("train", "validation")] == [81, 1]
    assert [on_gpu.num_rows(split, 0) for split in ("train", "validation")] == [16, 144]


def test_the_page_shows_the_committed_result():
    house = Path(__file__).parent.parent
    page = (house / "docs" / "gpu.md").read_text(encoding="utf-8")
    result = json.loads((house / "benchmarks" / "results" / "gpu_steps.json").read_text(encoding="utf-8"))
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        line = next(line for line in page.splitlines() if line.startswith(f"| {name}"))
        assert [float(cell) for cell in line.split("|")[2:-1]] == pytest.approx(
            [row["ms"] for row in result["rows"] if row["name"] == name], abs=0.0051
        )
    text = page.replace("\n", " ")
    bp, in_turn, side_by_side = (f"{row['ms']:.2f}" for row in result["exits_at_shares"])
    assert f"{side_by_side} ms after {in_turn} in turn, and {bp} by backprop" in text
    seconds = result["trainings"]["seconds"]
    assert "took {lct} s by LCT and {joint} s by joint losses for ResNet-14".format(**seconds["ResNet-14"]) in text
    assert "{lct} and {joint} s for EarlyWide".format(**seconds["EarlyWide"]) in text


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
def test_minibatches_of_a_gpu_are_those_of_the_cpu(augment):
    data = datasets.from_recipe(recipe_of("lct", data={"name": "digits", "augment": augment}))
    pairs = zip(data.batches("train", 1), data.to(torch.device("cuda")).batches("train", 1), strict=True)
    for (x, y), (x_gpu, y_gpu) in pairs:
        assert x_gpu.is_cuda and torch.equal(y, y_gpu.cpu())
        torch.testing.assert_close(x_gpu.cpu(), x)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("method", RECORDED)
def test_a_gpu_never_waits_for_the_host(method, recorded, digits, monkeypatch):
    device, clock = torch.device("cuda"), Clock(400, 200, 8)
    recipe = recipe_of(method, data={"name": "digits", "batch_size": 8})
    data = datasets.from_recipe(recipe)
    (trained,) = methods_of(recipe, data, device, clock)
    loop = Loop(trained, data, recipe.train, clock, Team(device), len(trained.exits))
    step, steps = loop._step if recorded else trained.step, loop._minibatches()
    for number in range(120):
        torch.cuda.set_sync_debug_mode("error" if number >= 20 else "default")
        try:
            batch = next(steps)
            loop.sums[0, loop.columns] += step(batch) * len(batch.y)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loop.sums.isfinite().all()


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", RECORDED)
def test_a_recorded_step_on_a_gpu_trains_as_the_step_itself(method, optimizer, digits):
    device, clock, steps = torch.device("cuda"), Clock(12, 6, 16), 12
    groups = {"name": optimizer, "lr": 0.01, "weight_decay": 0.01}
    recipe = recipe_of(method, groups=groups, groups_schedule={"name": "one-cycle"})
    data = digits.to(device)
    eager, recorded = methods_of(recipe, data, device, clock, 2)
    if isinstance(eager, Worker):
        eager.lanes = Lanes(device, 0)
    expected = states_after(eager.step, eager, data, steps)
    replay = Replay(recorded, CudaGraph(device))
    ours = states_after(replay.step, recorded, data, steps)
    assert replay._static is not None, "it is not recorded"
    assert not isinstance(recorded, Worker) or len(recorded.lanes._streams) == 3
    for a, b in zip(ours[0], expected[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert ours[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        torch.testing.assert_close(ours[1][key], value, rtol=1e-2, atol=1e-3, msg=str(key))
