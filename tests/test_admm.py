"""ADMM: every sub-step against brute force, the objective that a sweep lowers, resumed runs, and what it refuses."""

from __future__ import annotations

import os
import signal
from itertools import pairwise

import pytest
import torch
from torch import nn

from anytime_lct.data import datasets as data
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.events import Epoch
from anytime_lct.training.methods import admm
from anytime_lct.training.methods.admm import ADMM, ADMMRecipe
from anytime_lct.training.methods.table import checked
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.run import train
from anytime_lct.training.schedule import Clock

DIGITS = {
    "data": {"name": "digits", "batch_size": 2000, "augment": "none"},
    "model": {"name": "mlp", "hidden": [40, 20]},
    "cut": {"groups": 1},
    "train": {"epochs": 3, "method": "admm"},
}
GRID = torch.linspace(-4, 4, 80_001, dtype=torch.float64)  # steps of 1e-4


def recipe_with(**sections):
    return recipes.complete({k: {**DIGITS.get(k, {}), **sections.get(k, {})} for k in DIGITS.keys() | sections.keys()})


def method_of(recipe):
    """Return the method as a run makes it, and the one minibatch that it sweeps over."""
    dataset = data.from_recipe(recipe)
    network = build_network(recipe, dataset.facts).train()
    clock = Clock(dataset.num_batches("train"), dataset.num_batches("train"))
    method = ADMM(network, recipe, dataset.facts.task, clock, Team(torch.device("cpu")))
    x, y = next(dataset.batches("train"))
    return method, Minibatch(x, y, 0, last=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hinge(z, true):
    return (1 - z).clamp(min=0) if true else z.clamp(min=0)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 10.0), (2.0, 0.5)])
def test_hidden_units_minimise_their_part(beta, gamma):
    m, a = normal(50), normal(50, seed=1)
    best = admm.hidden(m, a, beta, gamma).double()

    def cost(z, k):
        return gamma * (a[k].double() - z.relu()).square() + beta * (z - m[k].double()).square()

    for k in range(50):
        assert cost(best[k], k) <= cost(GRID, k).min() + 1e-6
    assert (best < 0).any() and (best > 0).any()


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_outputs_minimise_their_part(beta):
    m, multiplier = normal(30, 3), normal(30, 3, seed=1) * 0.5
    y = torch.arange(30) % 3
    best = admm.output(m, y, multiplier, beta).double()

    def cost(z, k, c):
        pull = multiplier[k, c].double() * z + beta * (z - m[k, c].double()).square()
        return hinge(z, true=bool(y[k] == c)) + pull

    for k in range(30):
        for c in range(3):
            if best[k, c].abs() < 4:
                assert cost(best[k, c], k, c) <= cost(GRID, k, c).min() + 1e-6


def test_a_moved_multiplier_balances_the_slope_of_the_loss():
    """With 2 beta (z - m), and no other factor, -lambda is in the subdifferential of the loss at the new z."""
    beta, m, multiplier = 0.7, normal(40, 4), normal(40, 4, seed=1) * 0.3
    y = torch.arange(40) % 4
    true = nn.functional.one_hot(y, 4).bool()
    z = admm.output(m, y, multiplier, beta)
    moved = multiplier + 2 * beta * (z - m)
    slope = torch.where(true, -(z < 1).float(), (z > 0).float())
    kink = (z - true.float()).abs() < 1e-6
    torch.testing.assert_close(-moved[~kink], slope[~kink], rtol=1e-4, atol=1e-5)
    low, high = torch.where(true, -1.0, 0.0), torch.where(true, 0.0, 1.0)
    assert kink.any() and (-moved >= low - 1e-5).all() and (-moved <= high + 1e-5).all()


def test_weights_and_activations_make_their_gradients_vanish():
    a, z, h = normal(200, 12).double(), normal(200, 5, seed=1).double(), normal(200, 12, seed=2).double()
    W = admm.weights(a, z).requires_grad_()
    (z - admm.forward(W, a)).square().sum().backward()
    assert W.grad.abs().max() < 1e-3 * (admm.with_one(a).T @ z).abs().max()  # the ridge
    W = W.detach()
    a = admm.activations(W, z, h, 1.5, 4.0).requires_grad_()
    (1.5 * (z - admm.forward(W, a)).square().sum() + 4.0 * (a - h).square().sum()).backward()
    assert a.grad.abs().max() < 1e-10


def test_weights_survive_inputs_that_never_change():
    a = torch.cat([normal(100, 5), torch.full((100, 3), -0.4)], 1)
    assert admm.weights(a, normal(100, 4, seed=1)).isfinite().all()


def objective(method, recipe):
    options, flat = recipe.section("admm", ADMMRecipe), method.state()[1]
    beta, gamma = options.beta, options.gamma
    names, depth, a = ["linear1", "linear2", "output"], 3, flat["admm.x"]
    true = nn.functional.one_hot(flat["admm.y"], 10).bool()
    z = flat["admm.z_3"]
    total = torch.where(true, hinge(z, true=True), hinge(z, true=False)).sum() + (z * flat["admm.lambda"]).sum()
    for number, name in enumerate(names, start=1):
        z = flat[f"admm.z_{number}"]
        forward = nn.functional.linear(a, flat[f"main.{name}.weight"], flat[f"main.{name}.bias"])
        total = total + beta * (z - forward).square().sum()
        if number < depth:
            a = flat[f"admm.a_{number}"]
            total = total + gamma * (a - z.relu()).square().sum()
    return total.item()


def test_sweeps_lower_the_objective_while_the_multiplier_rests():
    recipe = recipe_with(admm={"beta": 0.5, "gamma": 2.0, "warmup": 6})
    method, batch = method_of(recipe)
    values = []
    for _ in range(6):
        method.step(batch)
        values.append(objective(method, recipe))
        assert not method.state()[1]["admm.lambda"].any()
    assert all(after < before for before, after in pairwise(values))
    method.step(batch)
    assert method.state()[1]["admm.lambda"].any()


def test_digits_are_learned_without_a_gradient(tmp_path):
    recipe = recipe_with(model={"hidden": [100, 50]}, train={"epochs": 15}, data={"validation": 0.2})
    with torch.no_grad():
        *_, last = (e for e in train(recipe, data.from_recipe(recipe), tmp_path / "run") if isinstance(e, Epoch))
    assert last.scores[0] > 0.85
    assert run_folder.open_run(tmp_path / "run").network.num_groups == 1


def run(recipe, path, stop_after=None, resume=False):
    for count, _ in enumerate(train(recipe, data.from_recipe(recipe), path, resume=resume)):
        if count == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
    return checkpoint.load_tensors(path / "main.safetensors")


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    recipe = recipe_with(train={"epochs": 4}, admm={"warmup": 1})
    whole = run(recipe, tmp_path / "whole")
    for stop_after, resume in ((0, False), (1, True)):
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "cut", stop_after, resume)
    cut = run(recipe, tmp_path / "cut", resume=True)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    first, second = (
        checkpoint.load(checkpoint.newest(tmp_path / name / "checkpoints"), 1)[0][1] for name in ("whole", "cut")
    )
    assert {"admm.x", "admm.y", "admm.z_3", "admm.a_2", "admm.lambda"} <= first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_another_method_is_refused():
    method, batch = method_of(recipe_with())
    method.step(batch)
    states = method.state()
    del states[1]["admm.z_2"]
    with pytest.raises(CheckpointError, match=r"not one of method admm: 'admm.z_2' is missing"):
        method.load(states)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "resnet", "depth": 8, "width": 4, "hidden": None}}, "Expected a perceptron.*got Conv2d"),
        ({"model": {"dropout": 0.1}}, "Expected a perceptron.*got Flatten, Linear, ReLU, Dropout; set model.name=mlp"),
        ({"data": {"batch_size": 100}}, r"got 13 minibatches of data.batch_size = 100; raise it to the number"),
        ({"data": {"augment": "crop"}}, "Expected data.augment = none with method admm"),
        (
            {
                "data": {"name": "pydoc", "sequence_length": 80, "augment": "none"},
                "model": {"name": "lstm", "layers": 2, "units": 8, "embedding": 4, "hidden": None},
            },
            "Expected images with method admm",
        ),
    ],
    ids=["convolutions", "dropout", "small batch", "augmentation", "text"],
)
def test_what_it_cannot_train_is_refused_in_a_sentence(sections, message):
    merged = {key: {**value, **sections.get(key, {})} for key, value in DIGITS.items()}
    merged["model"] = {key: value for key, value in merged["model"].items() if value is not None}
    with pytest.raises(RecipeError, match=message):
        method_of(checked(recipes.complete(merged)))


def test_hidden_weights_start_at_kaimings_deviation_unless_they_come_from_a_run(tmp_path):
    scaled, unscaled = (
        method_of(recipe_with(model={"hidden": [200, 100]}, train={"weights": w}))[0] for w in (None, str(tmp_path))
    )
    batch = method_of(recipe_with())[1]
    for method, deviation in ((scaled, (2 / 64) ** 0.5), (unscaled, (1 / 3 / 64) ** 0.5)):
        before = method.state()[1]["main.linear1.weight"].clone()
        method.step(batch)
        z = method.state()[1]["admm.z_1"]
        assert before.std().item() == pytest.approx((1 / 3 / 64) ** 0.5, rel=0.03)
        factor = deviation / (1 / 3 / 64) ** 0.5
        bias = method_of(recipe_with(model={"hidden": [200, 100]}))[0].state()[1]["main.linear1.bias"]
        expected = nn.functional.linear(batch.x.flatten(1), before * factor, bias)
        torch.testing.assert_close(z, expected, rtol=0.05, atol=0.05)  # the first sweep moves outputs only


def test_the_outputs_may_stand_right_behind_the_inputs():
    recipe = recipe_with(model={"hidden": []}, admm={"warmup": 100})
    method, batch = method_of(recipe)
    for _ in range(5):
        method.step(batch)
    assert method.evaluate([batch])[1].item() > 0.8
