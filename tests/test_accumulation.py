"""Gradients of several minibatches in one step: those of one large minibatch, with every method that steps by them."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anytime_lct.data import datasets
from anytime_lct.errors import RecipeError
from anytime_lct.recipes import reading
from anytime_lct.recipes.fitting import Traits, fit
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.methods import group
from anytime_lct.training.methods.table import METHODS, checked
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.run import train
from anytime_lct.training.schedule import Clock

MLP = {
    "data": {"name": "digits", "validation": 0.0, "augment": "crop"},
    "model": {"name": "mlp", "hidden": [12, 12]},
    "cut": {"groups": 3},
    "groups": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4},
    "critics": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "train": {"epochs": 1, "clip_norm": 0.3, "average": 0.5},
}


def recipe_of(method="lct", rows=200, accumulate=1, **tables):
    own = {"data": {"batch_size": rows}, "train": {"method": method, "accumulate": accumulate}}
    names = {*MLP, *tables}
    return reading.complete({k: {**MLP.get(k, {}), **own.get(k, {}), **tables.get(k, {})} for k in names})


def run(recipe, path, stop_after=None, resume=False):
    for count, _ in enumerate(train(recipe, datasets.from_recipe(recipe), path, resume=resume)):
        if count == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
    files = [path / name for name in ("main.safetensors", "critics.safetensors")]
    return {k: v for file in files if file.exists() for k, v in checkpoint.load_tensors(file).items()}


def trained(recipe, epochs=2):
    """Return the losses of every step, and all weights, averages and slots after some epochs, without a run folder."""
    data, row = datasets.from_recipe(recipe), METHODS[recipe.train.method]
    per_epoch = data.num_batches("train")
    clock = Clock(epochs * per_epoch, per_epoch, accumulate=recipe.train.accumulate)
    network = build_network(recipe, data.facts, whole=not row.cuts, compare=False).train()
    method = row.make(network, recipe, data.facts.task, clock, Team(torch.device("cpu")))
    for step in range(clock.total):
        epoch, number = divmod(step, per_epoch)
        x, y = next(data.batches("train", epoch, number))
        method.step(Minibatch(x, y, step))
    return {(index, name): value for index, flat in method.state().items() for name, value in flat.items()}


@pytest.mark.parametrize("method", ["lct", "joint", "bp", "posthoc"])
def test_minibatches_that_are_accumulated_are_one_large_one(method):
    loss = {"rule": {"critic_loss": "paper"}} if method == "lct" else {}
    whole, parts = (trained(recipe_of(method, *size, **loss)) for size in ((480, 1), (160, 3)))
    assert whole.keys() == parts.keys() and len(whole) > 3
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=2e-5, msg=str(key))


def test_a_run_stops_between_updates_and_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)
    recipe = recipe_of(accumulate=3)
    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", stop_after=3)
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000003"]
    cut = run(recipe, tmp_path / "cut", resume=True)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_replicas_weigh_what_they_have_accumulated_by_their_rows(monkeypatch):
    shares = []

    class Noted:
        def __init__(self, group, parameters, share):
            shares.append(share)

        def finish(self):
            pass

    monkeypatch.setattr(group, "Summing", Noted)
    recipe = recipe_of(accumulate=2)
    team = SimpleNamespace(replica_group="both", replica=0)
    member = group.GroupInTraining(1, nn.Linear(4, 3), None, recipe, "classification", Clock(4, 3, 8, 0, 2), team)
    for step, (rows, share) in enumerate(((8, 0.5), (3, 0.6), (4, 0.4))):
        member.forward(torch.zeros(rows, 4), step)
        member.judge(torch.zeros(rows, dtype=torch.long), step, share)
        member.descend(step)
    assert shares == pytest.approx([11 / 21, 0.4])


def test_rates_follow_the_samples_of_an_update():
    sgd = Traits(batch_norms=True, layer_norms=False, attention=False, recurrent=False)
    open_rates = reading.complete({"data": {"name": "digits"}, "train": {"accumulate": 4}})
    assert fit(open_rates, sgd, 32).groups.lr == 0.1


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("gpipe", "train.accumulate = 1 with method gpipe, .* raise data.batch_size and train.microbatches"),
        ("admm", "a method of gradient steps with train.accumulate, got admm with 2; leave it out"),
    ],
)
def test_methods_that_cannot_accumulate_say_so(method, says):
    with pytest.raises(RecipeError, match=says):
        checked(recipe_of(method, accumulate=2, data={"augment": "none"}, train={"average": 0.0}))
