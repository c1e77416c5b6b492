"""Backprop, DistributedDataParallel, GPipe and 1F1B as shipped, against plain torch and against each other."""

from __future__ import annotations

import json
import re
import typing

import pytest
import torch
from optimizers import SGD_AND_ADAM
from torch import nn
from training_processes import outcome, refusal, resume, same
from training_processes import train as train_apart

from anytime_lct.data import datasets
from anytime_lct.models import networks as models
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.run import train

MLP = {
    **SGD_AND_ADAM,
    "data": {"name": "digits", "batch_size": 100},
    "model": {"name": "mlp", "hidden": [20, 20, 20]},
    "cut": {"groups": 4},
    "train": {"epochs": 1, "method": "bp", "clip_norm": 0.5},
}
LSTM = {
    "data": {"name": "text", "path": typing.__file__, "batch_size": 256, "sequence_length": 20},
    "model": {"name": "lstm", "layers": 4, "units": 8, "embedding": 4},
    "cut": {"groups": 4},
    "train": {"epochs": 1, "method": "bp", "clip_norm": 0.5},
}


def recipe_with(recipe, **train):
    return {**recipe, "train": {**recipe["train"], **train}}


def test_backprop_is_that_of_plain_torch(tmp_path):
    recipe = recipes.complete(MLP)
    data = datasets.from_recipe(recipe)
    list(train(recipe, data, tmp_path / "run"))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.train.seed)
        model = models.build("mlp", data.facts.input_shape, data.facts.outputs, hidden=[20, 20, 20])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=data.num_batches("train"), cycle_momentum=False
    )
    for x, y in data.batches("train"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    for name, value in checkpoint.load_tensors(tmp_path / "run" / "main.safetensors").items():
        torch.testing.assert_close(value, model.state_dict()[name], msg=name)
    opened = run_folder.open_run(tmp_path / "run")
    assert opened.network.num_groups == 1


@pytest.mark.parametrize("recipe", [MLP, LSTM], ids=["mlp", "lstm"])
def test_pipelines_and_data_parallel_replicas_follow_backprop(recipe, tmp_path):
    train_apart(recipe, tmp_path / "bp")
    others = (("gpipe", 4, 1), ("1f1b", 2, 1)) if recipe is LSTM else (("1f1b", 4, 1), ("bp", 1, 2))
    for method, workers, replicas in others:
        folder = tmp_path / f"{method}-{workers}"
        train_apart(recipe_with(recipe, method=method), folder, workers, replicas)
        (weights, metrics), (expected, whole) = outcome(folder), outcome(tmp_path / "bp")
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=f"{method} {name}")
        assert metrics[-1]["train"]["loss"] == pytest.approx(whole[-1]["train"]["loss"], rel=1e-3)


def test_a_pipeline_goes_on_to_the_same_weights(tmp_path):
    recipe = recipe_with(MLP, method="gpipe", epochs=2)
    train_apart(recipe, tmp_path / "whole", workers=2)
    train_apart(recipe, tmp_path / "cut", workers=2)
    newest = checkpoint.newest(tmp_path / "cut" / "checkpoints")
    assert newest is not None
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    resume(tmp_path / "cut", 2)
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        ("bp", (2, 1), "one worker with method bp.*--replicas"),
        ("gpipe", (1, 1), "at least 2 workers and one replica with method gpipe, got 1 and 1"),
        ("1f1b", (2, 2), "at least 2 workers and one replica with method 1f1b, got 2 and 2"),
    ],
)
def test_sizes_that_a_method_cannot_run_in_are_refused(method, size, message, tmp_path):
    workers, replicas = size
    complaint = refusal(recipe_with(MLP, method=method), tmp_path / "run", workers, replicas)
    assert re.search(message, " ".join(complaint.split()))
    assert not (tmp_path / "run").exists()
