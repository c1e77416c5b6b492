"""Sufficient descent against (16) written out by autograd; tracking it changes nothing of a run."""

from __future__ import annotations

import copy
import json
import os
import signal
from functools import partial

import pytest
import torch
from matplotlib.axes import Axes
from optimizers import SGD_AND_ADAM
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from anytime_lct import descent
from anytime_lct import task as tasks
from anytime_lct.analysis import picture as descent_picture
from anytime_lct.cli import progress as verb
from anytime_lct.cli.main import app
from anytime_lct.data import datasets as data
from anytime_lct.errors import RecipeError
from anytime_lct.models.lstm import CarriedLSTM
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import checkpoint, journal
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.events import Epoch
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.run import train
from anytime_lct.training.schedule import Clock

IMAGES = {
    **SGD_AND_ADAM,
    "model": {"name": "resnet", "depth": 8, "width": 4, "dropout": 0.2},
    "cut": {"groups": 3},
    "data": {"name": "digits", "batch_size": 256},
    "train": {"epochs": 2, "track_descent": 4, "clip_norm": 0.0},
}
TEXT = {
    "data": {"name": "pydoc", "batch_size": 256, "sequence_length": 60},
    "model": {"name": "lstm", "layers": 2, "units": 8, "embedding": 4, "dropout": 0.2},
    "cut": {"groups": 2},
    "train": {"epochs": 1, "track_descent": 5},
}
MLP = {**IMAGES, "model": {"name": "mlp", "hidden": [20, 20], "dropout": 0.2}}
BFLOAT16 = {**MLP, "train": {**IMAGES["train"], "precision": "bfloat16"}}
VARIANTS = {"images": IMAGES, "text": TEXT, "mlp": MLP, "bfloat16": BFLOAT16}


def recipe_with(base, **settings):
    return recipes.complete({**base, "train": {**base["train"], **settings}})


def run(recipe, path, stop_after=None, resume=False):
    epochs = []
    for count, event in enumerate(train(recipe, data.from_recipe(recipe), path, resume=resume)):
        epochs += [event] if isinstance(event, Epoch) else []
        if count == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
    return epochs


def weights(path):
    return {
        k: v for name in ("main", "critics") for k, v in checkpoint.load_tensors(path / f"{name}.safetensors").items()
    }


def lines(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in journal.read(path / "descent.jsonl")]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(autouse=True)
def every_step_is_shown(monkeypatch):
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)


def image_network() -> tuple[list[nn.Module], list[nn.Module], Tensor, Tensor, tasks.TaskName]:
    torch.manual_seed(3)
    groups = [
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5)),
    ]
    critics = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(6, 5)),
    ]
    return groups, critics, torch.randn(7, 2, 6, 6), torch.randint(0, 5, (7,)), "classification"


def text_network() -> tuple[list[nn.Module], list[nn.Module], Tensor, Tensor, tasks.TaskName]:
    torch.manual_seed(3)
    groups = [
        nn.Sequential(nn.Embedding(9, 4), CarriedLSTM(4, 6, 0.2)),
        nn.Sequential(CarriedLSTM(6, 5), nn.Linear(5, 9)),
    ]
    for part in (groups[0][1], groups[1][0]):
        part.carry = True
        part.state = (torch.randn(1, 3, part.hidden_size), torch.randn(1, 3, part.hidden_size))
    return groups, [nn.Linear(6, 9)], torch.randint(0, 9, (3, 8)), torch.randint(0, 9, (3, 8)), "language-model"


def written_out(groups, critics, x, y, task, seeds):
    """(16) literally: every sub-model run on its own, and autograd for each group's weights; NaN where it is 0 / 0."""
    N = len(groups)

    def gradient(exit_, of_group):
        f, c = copy.deepcopy(groups), copy.deepcopy(critics)
        h = x
        for k in range(exit_):
            torch.manual_seed(seeds[k])
            h = f[k](h)
            Z = c[k](h) if k < N - 1 else h  # each critic draws its dropout right after its group
        if exit_ < N:
            h = Z
        gradients = torch.autograd.grad(tasks.losses(task, h, y).mean(), list(f[of_group].parameters()))
        return torch.cat([g.flatten() for g in gradients]).double()

    sigma, cosine = [], []
    for i in range(N):
        local, true = gradient(i + 1, i), gradient(N, i)
        sigma.append((true @ local / (true @ true)).item())
        cosine.append(torch.cosine_similarity(true, local, dim=0).item())
    return sigma, cosine


@pytest.mark.parametrize("make", [image_network, text_network])
def test_sigma_and_cosine_are_16_and_measuring_changes_nothing(make):
    groups, critics, x, y, task = make()
    seeds = list(range(11, 11 + len(groups)))
    network = nn.ModuleList([*groups, *critics])
    states = [m.state for m in network.modules() if isinstance(m, CarriedLSTM)]
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    sigma, cosine = written_out(groups, critics, x, y, task, seeds)
    torch.set_rng_state(random)

    measurement = descent.measure(groups, critics, x, y, partial(tasks.losses, task), step=6, seeds=seeds)

    assert measurement.sigma == pytest.approx(sigma, rel=1e-4)
    assert measurement.cosine == pytest.approx(cosine, rel=1e-4)
    assert measurement.sigma[-1] == measurement.cosine[-1] == 1.0
    assert all(abs(s) < 0.99 or s > 1.01 for s in sigma[:-1]), "a measurement that could not be wrong"
    assert measurement.step == 6 and measurement.seconds > 0
    assert same(network.state_dict(), before)
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.state for m in network.modules() if isinstance(m, CarriedLSTM)] == states  # the very tensors


def test_critics_that_pass_on_what_the_network_computes_have_sigma_1():
    """c_1 is the rest of the network itself: then the local gradient is the true one."""
    groups, _, x, y, task = image_network()
    network = [groups[0], nn.Sequential(groups[1], groups[2])]
    measurement = descent.measure(network, [network[1]], x, y, partial(tasks.losses, task))
    assert measurement.sigma == pytest.approx((1.0, 1.0)) and measurement.cosine == pytest.approx((1.0, 1.0))


def test_a_true_gradient_of_zero_gives_none():
    f = [nn.Linear(4, 4), nn.Linear(4, 3), nn.ReLU()]
    nn.init.zeros_(f[1].weight)  # nothing of L_3 reaches group 1
    measurement = descent.measure(
        f, [nn.Linear(4, 3), nn.Linear(3, 3)], torch.randn(5, 4), torch.arange(5) % 3,
        partial(tasks.losses, "classification"),
    )  # fmt: skip
    assert measurement.sigma[0] is measurement.cosine[0] is None
    assert measurement.sigma[1] is not None
    assert measurement.sigma[2] is None, "a group without weights has no gradient"
    line = json.loads(json.dumps(measurement.as_json(0.5), allow_nan=False))
    assert line["sigma"] == list(measurement.sigma) and line["epoch"] == 0.5


def test_the_local_gradient_is_what_training_steps_along():
    """With plain SGD, the step of a group divided by the learning rate is the gradient that was compared."""
    base = {**IMAGES, "groups": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}}
    recipe = recipe_with({**base, "groups_schedule": {"name": "constant"}})
    dataset = data.from_recipe(recipe)
    network = build_network(recipe, dataset.facts).train()
    worker = Worker.of(network, recipe, "classification", Clock(10, 5), Team(torch.device("cpu")))
    x, y = next(iter(dataset.batches("train", 0)))
    batch = Minibatch(x, y, 3)
    measurement, before = worker.descent(batch), [[p.detach().clone() for p in f.parameters()] for f in network.groups]
    true = true_gradients(network, recipe, worker, batch)
    worker.step(batch)
    for i, f in enumerate(network.groups):
        step = torch.cat([(b - p.detach()).flatten() for b, p in zip(before[i], f.parameters(), strict=True)]) / 0.1
        assert measurement.sigma[i] == pytest.approx((true[i] @ step / (true[i] @ true[i])).item(), rel=1e-3, abs=1e-5)


def true_gradients(network, recipe, worker, batch):
    whole = copy.deepcopy(network)
    h = batch.x
    for part, f in zip(worker.groups, whole.groups, strict=True):
        torch.manual_seed(part.seed(batch.step))
        h = f(h)
    L = tasks.losses("classification", h, batch.y, recipe.train.label_smoothing).mean()
    return [
        torch.cat([g.flatten() for g in torch.autograd.grad(L, list(f.parameters()), retain_graph=True)])
        for f in whole.groups
    ]


@pytest.mark.parametrize("base", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_tracked_run_ends_with_the_weights_of_an_untracked_one(base, tmp_path):
    tracked = run(recipe_with(base), tmp_path / "tracked")
    run(recipe_with(base, track_descent=0), tmp_path / "plain")
    assert same(weights(tmp_path / "tracked"), weights(tmp_path / "plain"))
    assert not (tmp_path / "plain" / "descent.jsonl").exists()
    measurements, every, steps = lines(tmp_path / "tracked"), base["train"]["track_descent"], tracked[-1].step
    assert [line["step"] for line in measurements] == list(range(0, steps, every))
    per_epoch = tracked[0].step
    assert [line["epoch"] for line in measurements] == pytest.approx(
        [k / per_epoch for k in range(0, steps, every)], abs=1e-4
    )
    assert all(len(line["sigma"]) == len(line["cosine"]) == base["cut"]["groups"] for line in measurements)
    assert all(line["sigma"][-1] == 1.0 for line in measurements)


@pytest.mark.parametrize("base", [IMAGES, TEXT], ids=["images", "text"])
def test_a_resumed_run_has_the_measurements_of_an_undisturbed_one(base, tmp_path):
    run(recipe_with(base), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe_with(base), tmp_path / "cut", stop_after=7)
    # what a process that was killed later, and after its last checkpoint, would have left
    stale = {**journal.read(tmp_path / "whole" / "descent.jsonl")[-1], "sigma": [7.0]}
    with (tmp_path / "cut" / "descent.jsonl").open("a") as file:
        file.write(json.dumps(stale) + '\n{"step": 9')
    run(recipe_with(base), tmp_path / "cut", resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_time_of_measuring_is_not_training_time(tmp_path, monkeypatch):
    real = descent.measure

    def slow(*args, **kwargs):
        measurement = real(*args, **kwargs)
        return descent.Descent(measurement.step, measurement.sigma, measurement.cosine, 1e5)

    monkeypatch.setattr("anytime_lct.training.methods.worker.measure", slow)
    epochs = run(recipe_with(IMAGES, epochs=1), tmp_path / "run")
    assert -2e5 < epochs[0].seconds < -1.9e5  # two measurements of so many seconds each, taken off
    assert journal.read(tmp_path / "run" / "descent.jsonl")[0]["seconds"] == 1e5


def test_tensorboard_has_sigma_at_its_minibatch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(recipe_with(IMAGES), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "descent"))
    events.Reload()
    scalars = events.Scalars("descent/sigma/group_1")
    assert [e.step for e in scalars] == [line["step"] for line in lines(tmp_path / "run")]
    assert [e.value for e in scalars] == pytest.approx([line["sigma"][0] for line in lines(tmp_path / "run")])


@pytest.mark.parametrize("size", [{"workers": 2}, {"replicas": 2}])
def test_several_processes_are_refused(size, tmp_path):
    recipe, team = recipe_with(IMAGES), Team(torch.device("cpu"), **size)
    with pytest.raises(RecipeError, match="Expected one process with train"):
        list(train(recipe, data.from_recipe(recipe), tmp_path / "run", team=team))
    assert not (tmp_path / "run").exists()


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_refuses_says_and_draws(tmp_path):
    options = "train --model mlp --set model.hidden=16,8 --groups 3 --epochs 1 --set train.track_descent=5 --run-dir"
    options = options.split()
    refused = call(*options, tmp_path / "run", "--workers", 2)
    assert isinstance(refused.exception, RecipeError) and "got 2 workers and 1 replicas" in str(refused.exception)
    assert not (tmp_path / "run").exists()

    output = call(*options, tmp_path / "run").stdout
    count = len(lines(tmp_path / "run"))
    assert f"Sufficient descent (16), measured {count} times: smallest sigma" in output
    tracked = json.loads(call(*options, tmp_path / "again", "--json").stdout)["descent"]
    assert tracked["measurements"] == count and len(tracked["smallest_sigma"]) == 3
    assert tracked["smallest_sigma"][2] == 1.0 and tracked["share_of_training"] > 0

    assert f"and {tmp_path / 'run' / 'descent.png'}." in call("analyze", tmp_path / "run").stdout
    with Image.open(tmp_path / "run" / "descent.png") as image:
        image.load()
        assert image.format == "PNG"


def lines_of(*sigma: tuple[float | None, ...]) -> list[dict]:
    return [
        {"step": k, "epoch": k / 10, "sigma": [*s, 1.0], "cosine": [*s, 1.0], "seconds": 0.5}
        for k, s in enumerate(sigma)
    ]


def test_a_summary_counts_what_did_not_descend():
    summary = descent.summarise(lines_of((0.5, 0.2), (-0.1, None), (0.0, 0.3)))
    assert summary == descent.Summary(3, (-0.1, 0.2, 1.0), (2, 0, 0), (0, 1, 0), 1.5)
    line = verb.descent_line({**vars(summary), "share_of_training": 0.25})
    assert "smallest sigma a group -0.1 0.2 1; <= 0 in group 1 2 of 3 times, undefined (true" in line
    assert "it took 1.5 s, 25.0% of training time" in line


def panels(*sigma: tuple[float | None, ...]) -> list[Axes]:
    return descent_picture.descent_figure(lines_of(*sigma), "a title").axes


def test_the_picture_shows_all_groups_but_the_last():
    above, below = panels((0.5, 0.2), (0.4, None), (0.3, 0.1))
    for axes in (above, below):
        curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
        assert [line.get_label() for line in curves] == ["group 1", "group 2"]
        assert list(curves[0].get_ydata()) == [0.5, 0.4, 0.3]
        assert list(curves[0].get_xdata()) == [0.0, 0.1, 0.2]


def test_sigma_is_logarithmic_only_where_all_are_positive_and_wide_apart():
    assert [p.get_yscale() for p in panels((0.001, 0.2), (0.4, 5.0))] == ["log", "linear"]
    assert panels((-0.001, 0.2), (0.4, 5.0))[0].get_yscale() == "linear"
    assert panels((0.1, 0.2), (0.4, 0.5))[0].get_yscale() == "linear"


def test_a_running_median_leaves_gaps_out():
    nan = float("nan")
    assert descent_picture.running_median([1.0, 9.0, 2.0, nan, 4.0], 2) == [5.0, 2.0, 5.5, 3.0, 4.0]
