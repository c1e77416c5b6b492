"""Joint losses, post-hoc exits and sub-networks alone, against plain torch; what stays frozen; resume to the bit."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
import torch
from optimizers import SGD_AND_ADAM
from torch import nn

from anytime_lct.data import datasets
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.methods.table import checked
from anytime_lct.training.run import train

MLP = {
    **SGD_AND_ADAM,
    "data": {"name": "digits", "batch_size": 200},
    "model": {"name": "mlp", "hidden": [20, 20]},
    "cut": {"groups": 3},
    "train": {"epochs": 2, "clip_norm": 0.0},
}
RESNET = {
    **SGD_AND_ADAM,
    "data": {"name": "digits", "batch_size": 256},
    "model": {"name": "resnet", "depth": 8, "width": 4, "dropout": 0.2},
    "cut": {"groups": 3},
    "train": {"epochs": 2, "clip_norm": 0.0},
}
TEXT = {
    "data": {"name": "pydoc", "batch_size": 256, "sequence_length": 80},
    "model": {"name": "lstm", "layers": 3, "units": 8, "embedding": 4, "dropout": 0.2},
    "cut": {"groups": 3},
    "train": {"epochs": 1},
}


def run(base, path, method, stop_after=None, resume=False, **options):
    """Train by a method, or stop by SIGINT after so many events; return the epochs."""
    recipe = recipes.complete({**base, "train": {**base["train"], "method": method, **options}})
    epochs = []
    for count, event in enumerate(train(recipe, datasets.from_recipe(recipe), path, resume=resume)):
        if hasattr(event, "scores"):
            epochs.append(event)
        if count == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
    return epochs


def weights(path):
    return {name: checkpoint.load_tensors(path / name) for name in ("main.safetensors", "critics.safetensors")}


def same(one, other):
    return all(
        one[file].keys() == other[file].keys() and all(torch.equal(one[file][n], other[file][n]) for n in one[file])
        for file in one
    )


def test_joint_losses_are_the_gradient_of_their_sum(tmp_path):
    run(MLP, tmp_path / "run", "joint", clip_norm=0.5, epochs=1)
    opened = run_folder.open_run(tmp_path / "run")
    recipe, data = opened.recipe, datasets.from_recipe(opened.recipe)
    network = build_network(recipe, data.facts)
    steps = data.num_batches("train")
    main = torch.optim.SGD(network.groups.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    own = torch.optim.Adam(network.critics.parameters(), recipe.critics.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(main, 0.1, total_steps=steps, cycle_momentum=False)
    for x, y in data.batches("train"):
        main.zero_grad()
        own.zero_grad()
        torch.stack([nn.functional.cross_entropy(Z, y) for Z in network(x)]).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        main.step()
        own.step()
        schedule.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(opened.network.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("base", [RESNET, TEXT], ids=["resnet", "lstm"])
def test_a_frozen_main_network_stays_as_it_is_to_the_bit(base, tmp_path):
    run(base, tmp_path / "bp", "bp")
    (*_, last) = run(base, tmp_path / "posthoc", "posthoc", weights=str(tmp_path / "bp"))
    before, after = weights(tmp_path / "bp"), weights(tmp_path / "posthoc")
    assert all(
        torch.equal(value, after["main.safetensors"][name]) for name, value in before["main.safetensors"].items()
    )
    assert not before["critics.safetensors"] and after["critics.safetensors"]
    data = datasets.from_recipe(recipes.complete(base))
    x = next(iter(data.batches("test")))[0]
    uncut, cut = (run_folder.open_run(tmp_path / name).network for name in ("bp", "posthoc"))
    assert torch.equal(uncut.sub_model(1)(x), cut.sub_model(3)(x))
    assert len(last.scores) == 3


def test_the_best_of_post_hoc_exits_is_theirs_not_the_frozen_networks(tmp_path):
    run(MLP, tmp_path / "bp", "bp", epochs=1)
    epochs = run(MLP, tmp_path / "best", "posthoc", weights=str(tmp_path / "bp"), keep="best", epochs=4)
    means = [sum(epoch.scores[:-1]) for epoch in epochs]
    assert max(means) > means[0]
    network = run_folder.open_run(tmp_path / "best").network
    data = datasets.from_recipe(recipes.complete(MLP))
    right = torch.zeros(2)
    with torch.no_grad():
        for x, y in data.batches("validation"):
            right += torch.stack([(Z.argmax(1) == y).sum() for Z in network(x)[:-1]])
    assert right.sum() / data.num_samples("validation") == pytest.approx(max(means))


def start_from(network, path):
    main, critics = run_folder.read_weights(path)
    network.load(main, critics or network.critics_state())


@pytest.mark.parametrize("before", ["bp", "lct"])
def test_critics_behind_a_frozen_network_learn_their_own_loss(before, tmp_path):
    """From new ones where the run before had none, and else on from its own."""
    run(MLP, tmp_path / "before", before)
    run(MLP, tmp_path / "run", "posthoc", weights=str(tmp_path / "before"))
    opened = run_folder.open_run(tmp_path / "run")
    data = datasets.from_recipe(opened.recipe)
    network = build_network(opened.recipe, data.facts)
    start_from(network, tmp_path / "before")
    own = torch.optim.Adam(network.critics.parameters(), opened.recipe.critics.lr)
    for epoch in range(2):
        for x, y in data.batches("train", epoch):
            own.zero_grad()
            torch.stack([nn.functional.cross_entropy(Z, y) for Z in network(x)[:-1]]).sum().backward()
            own.step()
    for name, value in network.critics_state().items():
        torch.testing.assert_close(opened.network.critics_state()[name], value, msg=name)


def test_critics_of_local_critic_training_are_fitted_on(tmp_path):
    run(MLP, tmp_path / "lct", "lct")
    run(MLP, tmp_path / "run", "posthoc", weights=str(tmp_path / "lct"))
    network = build_network(recipes.complete(MLP), run_folder.read(tmp_path / "lct")[1])
    start_from(network, tmp_path / "lct")
    first = weights(tmp_path / "lct")["critics.safetensors"]
    assert all(torch.equal(first[name], value) for name, value in network.critics_state().items())


@pytest.mark.parametrize("exit_", [1, 2])
def test_a_sub_network_alone_is_backprop_on_it(exit_, tmp_path):
    run(MLP, tmp_path / "run", "alone", exit=exit_, epochs=1)
    opened = run_folder.open_run(tmp_path / "run")
    data = datasets.from_recipe(opened.recipe)
    assert opened.network.num_groups == 1
    plain = build_network(recipes.complete(MLP), data.facts).sub_model(exit_)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    steps = data.num_batches("train")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False)
    for x, y in data.batches("train"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
        schedule.step()
    x = next(iter(data.batches("test")))[0]
    torch.testing.assert_close(opened.network.sub_model(1)(x), plain(x))


@pytest.mark.parametrize("base", [RESNET, TEXT], ids=["resnet", "lstm"])
@pytest.mark.parametrize("method", ["joint", "posthoc", "alone"])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(base, method, tmp_path):
    options = {"exit": 2} if method == "alone" else {}
    if method == "posthoc":
        run(base, tmp_path / "bp", "bp")
        options = {"weights": str(tmp_path / "bp")}
    whole = run(base, tmp_path / "whole", method, **options)
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "parts", method, stop_after=0, **options)
    run(base, tmp_path / "parts", method, resume=True, **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    last = json.loads((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    assert whole[-1].scores == tuple(last.get("accuracy") or last["bpc"])


def test_what_a_method_needs_is_asked_for(tmp_path):
    for train_, says in (
        (
            {"method": "posthoc"},
            "Expected train.weights with method posthoc, the run folder or file whose main network it freezes, got "
            "none; name it with --weights.",
        ),
        (
            {"method": "alone"},
            "Expected train.exit = 1, 2 .. with method alone, the sub-network that it trains, got none; set it.",
        ),
        (
            {"method": "bp", "exit": 1},
            "Expected train.exit with method alone, whose sub-network it names, got it with bp; leave it out.",
        ),
        (
            {"method": "joint", "track_descent": 5},
            "Expected train.track_descent with local critic training, which it compares with backprop, got it with "
            "method joint; leave it out.",
        ),
    ):
        with pytest.raises(RecipeError) as refused:
            checked(recipes.complete({**MLP, "train": {**MLP["train"], **train_}}))
        assert str(refused.value) == says
    with pytest.raises(CheckpointError, match=re.escape("which has no main.safetensors")):
        run(MLP, tmp_path / "run", "posthoc", weights=str(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
