"""Decoupled neural interfaces: gradients and targets against autograd, the first step, labels, resuming, refusals."""

from __future__ import annotations

import copy
import json
import os
import signal

import pytest
import torch
from optimizers import SGD_AND_ADAM
from torch import nn
from torch.nn import functional as F

from anytime_lct.data import datasets
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.events import Epoch, Progress
from anytime_lct.training.methods.dni import DNI, synthesizer
from anytime_lct.training.methods.table import checked
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.run import train
from anytime_lct.training.schedule import Clock

CPU = torch.device("cpu")
MLP = {
    **SGD_AND_ADAM,
    "data": {"name": "digits", "batch_size": 100},
    "model": {"name": "mlp", "hidden": [20, 20, 20]},
    "cut": {"groups": 4},
    "train": {"epochs": 1, "method": "dni", "clip_norm": 0.0},
    "dni": {"width": 16},
}
RESNET = {**MLP, "model": {"name": "resnet", "depth": 8, "width": 4}, "cut": {"groups": 3}}
BOTH = pytest.mark.parametrize("base", [MLP, RESNET], ids=["mlp", "resnet"])


def recipe_with(base, **sections):
    return recipes.complete({key: {**base.get(key, {}), **sections.get(key, {})} for key in base.keys() | sections})


def method_of(recipe):
    """Return a method, its network and a first minibatch."""
    data = datasets.from_recipe(recipe)
    network = build_network(recipe, data.facts).train()
    x, y = next(data.batches("train"))
    return DNI(network, recipe, data.facts.task, Clock(100, 100), Team(CPU)), network, Minibatch(x, y, 0)


def woken(method):
    """Give the last layers of the synthesizers, which start at zero, something to say."""
    torch.manual_seed(1)
    for learner in method.synthesizers:
        for parameter in learner.module[-1].parameters():
            nn.init.normal_(parameter, std=0.1)


def composed(groups, h):
    for group in groups:
        h = group(h)
    return h


class Oracle(nn.Module):
    """Says the gradient itself, of each sample's own loss times the scale."""

    def __init__(self, above, y, scale):
        super().__init__()
        self.above, self.y, self.scale = copy.deepcopy(above), y, scale
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, entry):
        h = entry.detach().requires_grad_()
        with torch.enable_grad():
            L = F.cross_entropy(composed(self.above, h), self.y, reduction="sum")
        return torch.autograd.grad(L, h)[0] * self.scale + self.nothing


@BOTH
def test_with_the_true_gradient_said_every_group_has_the_gradients_of_backprop(base):
    method, network, batch = method_of(recipe_with(base, dni={"labels": False, "scale": 7.0}))
    reference = copy.deepcopy(network.groups)
    method.M = [Oracle(network.groups[i + 1 :], batch.y, 7.0) for i in range(network.num_groups - 1)]
    method.step(batch)
    F.cross_entropy(composed(reference, batch.x), batch.y).backward()
    pairs = zip(reference.named_parameters(), network.groups.parameters(), strict=True)
    for (name, expected), got in pairs:
        assert expected.grad.norm() > 0, name
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-6, msg=name)


@BOTH
def test_a_synthesizer_learns_what_arrives_through_the_next_group(base):
    recipe = recipe_with(base, dni={"scale": 3.0})
    method, network, batch = method_of(recipe)
    woken(method)
    groups = copy.deepcopy(network.groups)
    M = [copy.deepcopy(learner.module) for learner in method.synthesizers]
    method.step(batch)
    B, h = len(batch.y), batch.x
    for i in range(len(M)):
        h = groups[i](h).detach().requires_grad_()
        after = groups[i + 1](h)
        if i + 1 < len(M):  # the loss whose gradient at h_{i+1} is the synthetic one
            objective = (after * M[i + 1](method.with_labels(after, batch.y)).detach()).sum() / (3.0 * B)
        else:
            objective = F.cross_entropy(after, batch.y)
        target = torch.autograd.grad(objective, h)[0] * 3.0 * B
        (M[i](method.with_labels(h.detach(), batch.y)) - target).square().mean().backward()
        for (name, expected), got in zip(
            M[i].named_parameters(), method.synthesizers[i].module.parameters(), strict=True
        ):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-6, msg=f"M_{i + 1} {name}")


@BOTH
def test_at_first_nothing_is_said_and_all_but_the_last_group_only_decay(base):
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.01}
    method, network, batch = method_of(recipe_with(base, groups=sgd, groups_schedule={"name": "constant"}))
    before = copy.deepcopy(network.groups)
    method.step(batch)
    for i, group in enumerate(network.groups):
        for old, new in zip(before[i].parameters(), group.parameters(), strict=True):
            decayed = torch.allclose(new, old * (1 - 0.1 * 0.01), rtol=1e-6, atol=0)
            assert decayed == (i < network.num_groups - 1)


@BOTH
@pytest.mark.parametrize("labels", [True, False])
def test_labels_reach_the_synthesizer_where_the_recipe_says_so(base, labels):
    method, network, batch = method_of(recipe_with(base, dni={"labels": labels}))
    h = torch.randn(len(batch.y), *network.shapes[0])
    entry, other = method.with_labels(h, batch.y), method.with_labels(h, (batch.y + 1) % 10)
    assert entry.shape == (len(h), h.shape[1] + 10 * labels, *h.shape[2:])
    assert torch.equal(entry[:, : h.shape[1]], h)
    assert torch.equal(entry, other) == (not labels)
    if labels:
        maps = entry[:, h.shape[1] :].flatten(2) if h.dim() == 4 else entry[:, h.shape[1] :, None]
        assert torch.equal(maps.amin(-1), maps.amax(-1))
        assert torch.equal(maps[..., 0].argmax(1), batch.y)
        assert torch.equal(maps[..., 0].sum(1), torch.ones(len(h)))


def test_synthesizers_follow_from_the_seed_alone():
    def weights(seed):
        torch.rand(3)  # the ambient random state must not matter
        method = method_of(recipe_with(MLP, train={"seed": seed}))[0]
        return method.synthesizers[0].module[0].weight

    state = torch.random.get_rng_state()
    synthesizer((20,), 10, 16)
    torch.random.set_rng_state(state)
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    "recipe",
    [
        recipe_with(MLP, train={"epochs": 2, "keep_optimizer": True}),
        recipe_with(
            RESNET,
            data={"batch_size": 400},
            train={"epochs": 2, "keep_optimizer": True, "precision": "bfloat16", "channels_last": True},
        ),
    ],
    ids=["mlp", "resnet-bfloat16"],
)
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)
    data = datasets.from_recipe(recipe)
    list(train(recipe, data, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        for event in train(recipe, data, tmp_path / "cut"):
            if isinstance(event, Progress) and event.batch == 2:
                os.kill(os.getpid(), signal.SIGINT)
    list(train(recipe, data, tmp_path / "cut", resume=True))
    states = [
        checkpoint.load(checkpoint.newest(tmp_path / name / "checkpoints"), recipe.cut.groups)[0]
        for name in ("whole", "cut")
    ]
    for index, tensors in states[0].items():
        assert tensors.keys() == states[1][index].keys()
        assert any(name.startswith("synthesizer_optimizer.") for name in tensors) == (index < recipe.cut.groups)
        assert all(torch.equal(value, states[1][index][name]) for name, value in tensors.items())
    opened = run_folder.open_run(tmp_path / "cut")
    assert opened.network.num_groups == 1
    last = json.loads((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(last["train"]["loss"]) == len(last["validation"]["accuracy"]) == 1


def test_a_lower_group_learns_the_digits_though_it_sees_no_loss(tmp_path):
    """Eight units at the bottleneck: left as they began, which a synthesizer of no rate does, they tell too little."""
    base = {**MLP, "model": {"name": "mlp", "hidden": [8, 32]}, "cut": {"groups": 2}, "dni": {}}
    scores = {}
    for rate in (3e-3, 1e-12):
        recipe = recipe_with(base, data={"batch_size": 64}, train={"epochs": 10}, critics={"name": "adam", "lr": rate})
        events = train(recipe, datasets.from_recipe(recipe), tmp_path / f"{rate}")
        *_, last = (event for event in events if isinstance(event, Epoch))
        scores[rate] = last.scores[0]
    assert scores[3e-3] > 0.6
    assert scores[3e-3] > scores[1e-12] + 0.1


def test_a_minibatch_of_one_row_is_learned_from():
    method, _, batch = method_of(recipe_with(MLP))
    assert method.step(Minibatch(batch.x[:1], batch.y[:1], 0)).tolist() == [pytest.approx(2.3, abs=0.5)]


def test_a_checkpoint_of_another_network_is_refused():
    method, other = method_of(recipe_with(MLP))[0], method_of(recipe_with(MLP, dni={"width": 8}))[0]
    with pytest.raises(CheckpointError, match="Layer group 1: The checkpoint does not belong to this network"):
        method.load(other.state())


def test_text_is_refused():
    with pytest.raises(RecipeError, match="Expected images with method dni"):
        checked(recipes.complete({"data": {"name": "pydoc"}, "train": {"method": "dni"}}))
    recipe = recipes.complete({"data": {"name": "pydoc"}})
    data = datasets.from_recipe(recipe)
    network = build_network(recipe, data.facts)
    with pytest.raises(RecipeError, match=r"images.*method dni.*hidden tensor of shape.*train by lct or bp"):
        DNI(network, recipe, data.facts.task, Clock(1, 1), Team(CPU))
